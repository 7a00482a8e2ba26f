"""Timing of single calls: warmed up, taking turns, with the cache flushed in between."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import quantiles

import torch
from torch import Tensor

from specplug_kernels.bench.machine import Machine

Call = Callable[[], object]

WARM_UP = 3
"""Calls of each before timing: modules load, kernels compile, allocators fill."""
LEAST_ROUNDS = 5
"""Rounds that are run whatever they take: quartiles of fewer say nothing."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Microseconds of one call. ``spread``: from the lower to the upper quartile."""

    minimum: float
    median: float
    spread: float


class Stopwatch:
    """Times one call at a time, each after its operands were driven out of the cache.

    On a GPU by events, which are read when all is done: a call is timed as the device sees it, its kernels and the gaps
    between them. On a CPU by the clock.
    """

    def __init__(self, machine: Machine, *, flush: bool = True) -> None:
        self._cuda = machine.device.type == "cuda"
        self._scratch = (
            torch.ones(2 * machine.cache_bytes // 4, dtype=torch.float32, device=machine.device) if flush else None
        )
        self._events: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {}
        self._seconds: dict[str, list[float]] = {}

    def take(self, name: str, call: Call) -> None:
        """Time ``call`` once, under ``name``."""
        if self._scratch is not None:
            self._flush(self._scratch)
        if self._cuda:
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            call()
            end.record()
            self._events.setdefault(name, []).append((start, end))
        else:
            before = time.perf_counter()
            call()
            self._seconds.setdefault(name, []).append(time.perf_counter() - before)

    def timings(self) -> dict[str, Timing]:
        """What was taken, by name; the watch starts anew."""
        if self._cuda:
            torch.cuda.synchronize()
            self._seconds = {
                name: [start.elapsed_time(end) * 1e-3 for start, end in events] for name, events in self._events.items()
            }
        taken = {name: _timing(seconds) for name, seconds in self._seconds.items()}
        self._events, self._seconds = {}, {}
        return taken

    def _flush(self, scratch: Tensor) -> None:
        """Fill the cache with something else. Written on a GPU, whose L2 may hold back what was only read; read on a CPU."""
        if self._cuda:
            scratch.fill_(1.0)
        else:
            scratch.sum()


def first_failure(call: Call) -> str | None:
    """Call once; the first line of what it raises, ``None`` if it returns. A backend that fails does not end the command."""
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    return None


def measure(calls: Mapping[str, Call], watch: Stopwatch, *, repeats: int, seconds: float) -> dict[str, Timing]:
    """Time every call in turn, A B C, A B C, ..., until ``repeats`` rounds, or after some of them ``seconds``, are over."""
    for call in calls.values():
        for _ in range(WARM_UP):
            call()
    deadline = time.perf_counter() + seconds
    for done in range(max(repeats, 2)):
        if done >= LEAST_ROUNDS and time.perf_counter() > deadline:
            break
        for name, call in calls.items():
            watch.take(name, call)
    return watch.timings()


def _timing(seconds: list[float]) -> Timing:
    low, middle, high = quantiles(seconds, n=4)
    return Timing(min(seconds) * 1e6, middle * 1e6, (high - low) * 1e6)
