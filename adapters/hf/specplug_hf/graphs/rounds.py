"""The two parts of a round whose shapes stay the same from round to round, recorded: the draft, and the verify.

A draft that reads a window of fixed size has the same shapes whatever the context: all of it, levels and sampling, is one
recording. A verify reads the whole cache through a page table that does not move as long as no row leaves; its width is what
makes its shape. Both run eagerly until they have been seen a few times, and for models or calls that they do not fit.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor

from specplug import Batch, TreeBatch
from specplug.drafters import Drafter, SelfDraft
from specplug.drafters.base import DraftRequest
from specplug_hf.graphs.graphs import Graphs
from specplug_hf.graphs.recording import Recorder
from specplug_hf.paged.store import PagedStore

if TYPE_CHECKING:
    from specplug_hf.host import HFHost

logger = logging.getLogger(__name__)


class RecordedRounds:
    """Recordings of one host's rounds. Its store is a paged one."""

    def __init__(self, host: HFHost, recorder: Recorder) -> None:
        assert isinstance(host.store, PagedStore)
        self._host, self._store, self.graphs = host, host.store, Graphs(recorder)
        self._stamp = self._store.stamp

    def install(self, drafters: Sequence[Drafter]) -> None:
        """Let the working copies `drafters` of self-drafting over a window draft by replays."""
        for drafter in drafters:
            if isinstance(drafter, SelfDraft) and drafter.budget is not None and not drafter.kv_policy.needs:
                drafter.draft = partial(self.draft, drafter, drafter.draft)  # type: ignore[method-assign]

    def draft(self, drafter: Any, draft: Any, request: DraftRequest) -> TreeBatch:
        """What `draft` proposes."""
        batch, runner = request.batch, drafter._runner
        room = max(self._host.lengths) + request.shape.num_nodes + 1
        if not request.shape.size or min(self._host.lengths) <= drafter.kv_policy.budget:
            return draft(request)

        def function(roots: Tensor, lengths: Tensor, seeds: Tensor) -> TreeBatch:
            runner.recording = True
            try:
                return draft(replace(request, batch=replace(batch, roots=roots, lengths=lengths, seeds=seeds)))
            finally:
                runner.recording = False

        kind = ("draft", drafter.key, request.shape, request.grown, request.explain, batch.sampling)
        trees = self._run(kind, room, (batch.roots, batch.lengths, batch.seeds), function)
        # a round's trees are looked at when the next one's have been drafted
        return draft(request) if trees is None else replace(trees, tokens=trees.tokens.clone())

    def verify(self, batch: Batch, trees: TreeBatch) -> Tensor | None:
        """Logits [B, N, V] of all nodes; None: read them eagerly."""

        def function(tokens: Tensor, lengths: Tensor, ancestors: Tensor, depths: Tensor) -> Tensor:
            static = replace(trees, tokens=tokens, ancestors=ancestors, depths=depths)
            return self._host.read(lengths, static, places=lengths, replayed=True).logits

        inputs = (trees.tokens, batch.lengths, trees.ancestors, trees.depths)
        return self._run(("verify", trees.num_nodes), max(self._host.lengths) + trees.num_nodes, inputs, function)

    def _run(self, kind: Any, room: int, inputs: tuple[Tensor, ...], function: Any) -> Any:
        self._store.reserve(room)
        if self._store.stamp != self._stamp:
            self._stamp = self._store.stamp
            self.graphs.forget()
        return self.graphs.run(kind, inputs, function)


def why_eager(host: HFHost, recorder: Recorder | None) -> str | None:
    """Why a generation's rounds are not recorded, as a clause; None if they are."""
    if recorder is None:
        return f"nothing is recorded on {host.device.type}"
    obstacles = {
        "its cache is not paged": not isinstance(host.store, PagedStore),
        "a drafter looks at its queries or hidden states": host.queries is not None or host.hidden_states is not None,
        "hidden states or attention weights are to be returned": bool(host.records.forward_flags),
        "the model takes inputs beside tokens": bool(host.extras.for_nodes(host.rows, 1)),
        "its layers are on several devices": {keys.device for keys in host.store.keys} != {host.device},
    }
    return next((cause for cause, true in obstacles.items() if true), None)


def recorded_rounds(host: HFHost, recorder: Recorder | None) -> RecordedRounds | None:
    """Recordings for `host`, or None, and then it is said why where a device could have them."""
    cause = why_eager(host, recorder)
    if cause is None:
        assert recorder is not None
        return RecordedRounds(host, recorder)
    if recorder is not None:
        logger.info("specplug: rounds run eagerly: %s.", cause)
    return None
