"""Forwards of ours in the place of modules' own, for one thread's forwards, while every other thread's run the modules'.

Inside, the modules have a `forward` of ours, which asks a thread-local what to do. A forward that is not ours (a plain `generate` of
the same model in another thread) computes as ever.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MethodType
from typing import Any

from torch import nn

Answer = Callable[..., Any]  # called as (the module's own forward, *args, **kwargs)
Answers = Mapping[int, Answer]  # by id(module)


class _Current(threading.local):
    def __init__(self) -> None:
        self.answers: Answers = {}
        self.by_rank: dict[int, Answers] = {}  # what `answers` is made of
        self.outer: list[tuple[Answers, dict[int, Answers]]] = []  # what held around it


class _StandIn:
    """`module.forward` as it is, and the answer for threads that have one. A copy of `module` made meanwhile gets its own forward."""

    def __init__(self, module: nn.Module) -> None:
        self.__name__ = self.__qualname__ = "stand_in"  # as functions have it
        self._before, self._forward = module.__dict__.get("forward"), module.forward
        self._module, self._key = module, id(module)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        answer = _current.answers.get(self._key)
        if answer is None:
            return self._forward(*args, **kwargs)
        return answer(self._forward, *args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        if self._before is not None:
            return _itself, (self._before,)
        return _forward_of, (self._module,)


@dataclass(slots=True)
class _Replaced:
    before: Any  # the module's own instance attribute, if it had one
    stand_in: _StandIn
    holds: int = 0


_current = _Current()
_lock = threading.Lock()
_replaced: dict[int, _Replaced] = {}  # by id(module)


class StandIns:
    """A context in which `answers` stand in for this thread's calls of `modules`.

    The modules are as found afterwards, also after an exception. May be entered any number of times, also by several threads at
    once. Of one rank the inner one counts; of several all do, and the highest for a module that more than one has.
    """

    rank = 0

    def __init__(self, modules: Sequence[nn.Module], answers: Sequence[Answer]) -> None:
        self._modules = tuple(modules)
        self._answers: Answers = {id(module): answer for module, answer in zip(modules, answers, strict=True)}

    @classmethod
    def joined(cls, several: Sequence[StandIns]) -> StandIns:
        """What all of `several` answer for, which have no module in common."""
        modules = [module for one in several for module in one._modules]
        return StandIns(modules, [answer for one in several for answer in one._answers.values()])

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep our forwards in the modules, for contexts of `answering` within."""
        with _lock:
            for module in self._modules:
                _replace(module)
        try:
            yield
        finally:
            with _lock:
                for module in self._modules:
                    _put_back(module)

    def __enter__(self) -> None:
        with _lock:
            for module in self._modules:
                _replace(module)
        self.begin()

    def __exit__(self, *_: object) -> None:
        self.end()
        with _lock:
            for module in self._modules:
                _put_back(module)

    def begin(self) -> None:
        """Answer this thread's calls from now on, while the modules are held."""
        current = _current
        current.outer.append((current.answers, current.by_rank))
        by_rank = {**current.by_rank, self.rank: self._answers}
        current.by_rank = by_rank
        current.answers = self._answers if len(by_rank) == 1 else _merged(by_rank)

    def end(self) -> None:
        """As it was before `begin`."""
        _current.answers, _current.by_rank = _current.outer.pop()


def is_somebody_elses(module: nn.Module) -> bool:
    """Whether `module` has a forward of its own that is not ours: accelerate puts one into modules, for example."""
    own = module.__dict__.get("forward")
    if own is None:
        return False
    with _lock:
        known = _replaced.get(id(module))
        return known is None or known.before is not None or known.stand_in is not own


def _forward_of(module: nn.Module) -> Any:
    """As its class has it: `module` may be a copy that is not whole yet."""
    return MethodType(type(module).forward, module)


def _itself(forward: Any) -> Any:
    return forward


def _merged(by_rank: dict[int, Answers]) -> Answers:
    merged: dict[int, Answer] = {}
    for rank in sorted(by_rank):
        merged.update(by_rank[rank])
    return merged


def _replace(module: nn.Module) -> None:
    """Give `module` a `forward` of ours, unless it has one already."""
    known = _replaced.get(id(module))
    if known is None:
        known = _replaced[id(module)] = _Replaced(module.__dict__.get("forward"), _StandIn(module))
        module.__dict__["forward"] = known.stand_in
    known.holds += 1


def _put_back(module: nn.Module) -> None:
    known = _replaced[id(module)]
    known.holds -= 1
    if known.holds:
        return
    del _replaced[id(module)]
    if module.__dict__.get("forward") is not known.stand_in:
        return  # somebody has put another one there since, and may take it away again
    if known.before is None:
        del module.__dict__["forward"]
    else:
        module.__dict__["forward"] = known.before
