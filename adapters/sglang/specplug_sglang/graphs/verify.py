"""Verify graphs of several widths. SGLang captures one, the widest; a tree of another width would run eagerly."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

logger = logging.getLogger(__name__)

Agree = Callable[[bool], bool]
"""Whether it holds on every rank: a graph that one of them lacks is used by none."""


@dataclass(frozen=True, slots=True)
class Width:
    """One width's graphs, and the attention backend whose buffers they read; both are SGLang's."""

    attention: Any
    graphs: Any


class VerifyGraphs:
    """The captured widths of one model runner, of which one is in place at a time."""

    def __init__(self, runner: Any, own: int) -> None:
        """`own`: the width that SGLang has captured on `runner` itself."""
        self._runner, self._own = runner, own
        self._widths: dict[int, Width] = {}
        self._said: set[int] = set()

    @property
    def widths(self) -> tuple[int, ...]:
        """Nodes a row of the verifies that replay a graph, ascending."""
        return tuple(sorted({self._own, *self._widths}))

    def capture(self, width: int, build: Callable[[int], Width], agree: Agree) -> None:
        """Have `build` capture `width`; where it raises, verifies of this width run eagerly."""
        made = None
        try:
            made = build(width)
        except Exception as error:  # whatever a capture raises must not cost the server its start
            logger.warning("specplug: no CUDA graphs for verifies of %d nodes: %r. They run eagerly.", width, error)
        if agree(made is not None) and made is not None:
            self._widths[width] = made

    @contextmanager
    def at(self, width: int) -> Iterator[None]:
        """The graphs of `width` stand in SGLang's place meanwhile; for a width without, nothing changes."""
        made = self._widths.get(width)
        if made is None:
            self._say(width)
            yield
            return
        runner = self._runner
        before = runner.attn_backend, runner.decode_cuda_graph_runner
        runner.attn_backend, runner.decode_cuda_graph_runner = made.attention, made.graphs
        try:
            yield
        finally:
            runner.attn_backend, runner.decode_cuda_graph_runner = before

    def _say(self, width: int) -> None:
        if width != self._own and width not in self._said:
            self._said.add(width)
            logger.info("specplug: verifies of %d nodes run eagerly; there are graphs for %s.", width, self.widths)
