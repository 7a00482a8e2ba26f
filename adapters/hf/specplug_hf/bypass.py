"""Modules that one thread's forwards pass by, while every other thread's run them.

Inside, the modules have a `forward` of ours, which asks a thread-local what to do. A forward that is not ours (a plain `generate` of
the same model in another thread) computes as ever.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Parts = dict[int, int]  # id(module) -> values of the tuple that it returns; 0: a tensor alone


class _Current(threading.local):
    def __init__(self) -> None:
        self.passed_by: Parts = {}
        self.outer: list[Parts] = []  # what was passed by around it


_current = _Current()
_lock = threading.Lock()
_replaced: dict[int, tuple[Any, int]] = {}  # id(module) -> its own `forward` before, if any; number of forwards inside


class Bypass:
    """A context in which this thread's calls of `modules` return zeros like what they are given, and run nothing.

    `parts` says what they return. The modules are as found afterwards, also after an exception. May be entered any number of times,
    also by several threads at once.
    """

    def __init__(self, modules: Sequence[nn.Module], parts: Parts) -> None:
        self._modules = tuple(modules)
        self._parts = {id(module): parts[id(module)] for module in modules}

    def __enter__(self) -> None:
        with _lock:
            for module in self._modules:
                _replace(module)
        _current.outer.append(_current.passed_by)
        _current.passed_by = self._parts

    def __exit__(self, *_: object) -> None:
        _current.passed_by = _current.outer.pop()
        with _lock:
            for module in self._modules:
                _put_back(module)


def given(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The hidden states among the arguments of a layer or sublayer."""
    hidden: Tensor = args[0] if args else kwargs["hidden_states"]
    return hidden


def _replace(module: nn.Module) -> None:
    """Give `module` a `forward` of ours, unless it has one already."""
    before, inside = _replaced.get(id(module), (module.__dict__.get("forward"), 0))
    _replaced[id(module)] = (before, inside + 1)
    if not inside:
        module.__dict__["forward"] = _stand_in(module)


def _put_back(module: nn.Module) -> None:
    before, inside = _replaced.pop(id(module))
    if inside > 1:
        _replaced[id(module)] = (before, inside - 1)
    elif before is None:
        del module.__dict__["forward"]
    else:
        module.__dict__["forward"] = before


def _stand_in(module: nn.Module) -> Callable[..., Any]:
    """`module.forward` as it is, and zeros for threads that pass it by."""
    forward, key = module.forward, id(module)

    def stand_in(*args: Any, **kwargs: Any) -> Any:
        parts = _current.passed_by.get(key)
        if parts is None:
            return forward(*args, **kwargs)
        nothing = torch.zeros_like(given(args, kwargs))
        return (nothing, *[None] * (parts - 1)) if parts else nothing

    return stand_in
