"""Draft forwards over a fixed part of the cache, captured: what grows with the context runs eagerly."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from specplug_sglang.graphs.sizes import size_for
from specplug_sglang.graphs.static import StaticInputs
from specplug_sglang.graphs.verify import Agree
from specplug_sglang.view import NodeView

logger = logging.getLogger(__name__)


class Recorder(Protocol):
    """Records a forward over the first `size` tokens of static inputs, and repeats it."""

    def record(self, size: int) -> None:
        """Capture it."""

    def replay(self, size: int) -> Tensor:
        """Run it on what the static inputs hold now: logits [size, V], which the next replay may overwrite."""


class DraftGraphs:
    """The draft forwards of one model runner.

    All is captured when the server starts, not when a shape is first seen: a capture stops every request for as long as
    it takes, allows no other thread a call to CUDA, and with several ranks has to happen on all at the same forward.
    The shapes are known by then: only the number of tokens makes one, since every token is a row with its own slot list.
    """

    def __init__(self, inputs: StaticInputs, recorder: Recorder) -> None:
        self._inputs, self._recorder = inputs, recorder
        self._sizes: list[int] = []
        self._said: set[str] = set()

    @property
    def sizes(self) -> tuple[int, ...]:
        """Token counts that have a graph, ascending."""
        return tuple(self._sizes)

    def capture(self, sizes: Sequence[int], agree: Agree) -> None:
        """Capture `sizes`, the largest first: the smaller ones then find room in its memory."""
        for size in sorted(sizes, reverse=True):
            # replayed at once: what a replay prepares on the host is as new to a server as the capture
            if agree(self._works(self._recorder.record, size)) and agree(self._works(self._recorder.replay, size)):
                self._sizes.insert(0, size)

    def _works(self, step: Callable[[int], object], size: int) -> bool:
        try:
            step(size)
        except Exception as error:  # whatever a capture raises must not cost the server its start
            logger.warning("specplug: no CUDA graph for drafts of %d tokens: %r. They run eagerly.", size, error)
            return False
        return True

    def forward(
        self, tokens: Tensor, view: NodeView, write: Tensor, positions: Tensor, rows: Tensor, lengths: Tensor
    ) -> Tensor | None:
        """Logits [B, q, V] of `tokens` [B, q] over `view`, or None if there is no graph for them; see `StaticInputs.load`."""
        count, columns = tokens.numel(), view.slots.shape[1]
        size = size_for(count, self._sizes)
        if columns > self._inputs.columns:
            self._say("columns", f"read {columns} positions, over the {self._inputs.columns} that graphs have room for")
            return None
        if size is None:
            self._say("tokens", f"have {count} tokens; there are graphs for {self.sizes}")
            return None
        self._inputs.load(size, tokens, view, write, positions, rows, lengths)
        logits = self._recorder.replay(size)
        return logits[:count].clone().view(*tokens.shape, -1)  # a copy: the graphs share their memory

    def _say(self, kind: str, what: str) -> None:
        """Once for each kind: contexts and batches come in all sizes."""
        if kind not in self._said:
            self._said.add(kind)
            logger.info("specplug: some draft forwards run eagerly: they %s.", what)
