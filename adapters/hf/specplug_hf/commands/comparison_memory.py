"""What a drafter holds in memory besides what plain decoding holds: its weights, caches, stores and texts.

In bytes of tensors, and of whatever says of itself how many it has (`held_bytes`): texts that are looked up in are no tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from specplug import Round
from specplug.hookspecs import hookimpl
from specplug.plugins import plugins

_PLAIN = (str, bytes, int, float, complex, bool, type(None), type, FunctionType, MethodType, ModuleType)


def tensors_of(things: Iterable[Any], but_not: Iterable[Any] = ()) -> Iterator[Tensor]:
    """Every tensor that can be reached from `things`, see `reached`."""
    return (thing for thing in reached(things, but_not) if isinstance(thing, Tensor))


def reached(things: Iterable[Any], but_not: Iterable[Any] = ()) -> Iterator[Any]:
    """What can be reached from `things` through attributes, items and elements, themselves included, each object once.

    Nothing is followed that is one of `but_not`, or that says how many bytes it has.
    """
    seen = {id(thing) for thing in but_not}
    waiting = list(things)
    while waiting:
        thing = waiting.pop()
        if isinstance(thing, _PLAIN) or id(thing) in seen:
            continue
        seen.add(id(thing))
        yield thing
        waiting += _parts(thing)


def _parts(thing: Any) -> list[Any]:
    if isinstance(thing, Tensor) or hasattr(thing, "held_bytes"):
        return []
    parts = list(vars(thing).values()) if hasattr(thing, "__dict__") else []
    for kind in type(thing).__mro__:
        names = kind.__dict__.get("__slots__", ())
        parts += [getattr(thing, name, None) for name in ((names,) if isinstance(names, str) else names)]
    if isinstance(thing, Mapping):
        parts += [*thing.keys(), *thing.values()]
    elif isinstance(thing, list | tuple | set | frozenset):
        parts += thing
    return parts


def storage_bytes(tensors: Iterable[Tensor], but_not: Iterable[Tensor] = ()) -> int:
    """Bytes of the storages behind `tensors`, each once, those behind `but_not` left out."""
    known = {tensor.untyped_storage().data_ptr() for tensor in but_not}
    found = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(size for place, size in found.items() if place not in known)


class MemoryWatch:
    """Listens to rounds: `bytes` is the most that a drafter held after any of them, the target's own not counted."""

    def __init__(self, target: PreTrainedModel) -> None:
        self.bytes = 0
        self._target = target

    def __enter__(self) -> MemoryWatch:
        plugins().manager.register(self)
        return self

    def __exit__(self, *_: object) -> None:
        plugins().manager.unregister(self)

    @hookimpl
    def specplug_round_finished(self, event: Round) -> None:
        """Count what can be reached from the working copy that drafted."""
        drafter = event.plan.arm.drafter
        host: Any = drafter.host
        own = [*self._target.parameters(), *self._target.buffers(), *tensors_of([host.store])]
        held = list(reached([drafter], but_not=[host, *self._target.modules()]))
        texts = sum(thing.held_bytes for thing in held if hasattr(thing, "held_bytes"))
        with torch.no_grad():
            tensors = storage_bytes((thing for thing in held if isinstance(thing, Tensor)), own)
        self.bytes = max(self.bytes, tensors + texts)
