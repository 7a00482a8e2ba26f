"""The two parts of a round whose shapes stay the same from round to round, recorded: the draft, and the verify.

A draft that reads a window of fixed size has the same shapes whatever the context: all of it, levels and sampling, is one
recording, of the target itself or of another model, which first reads the one token or two that it has not seen. A verify reads
the whole cache through a page table that does not move as long as no row leaves; its width is what makes its shape. Both run
eagerly until they have been seen a few times, and for models or calls that they do not fit.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from specplug import Batch, TreeBatch
from specplug.drafters import Drafter
from specplug_hf.graphs.drafts import RecordedDraft, why_eager_draft
from specplug_hf.graphs.graphs import Graphs
from specplug_hf.graphs.recording import Recorder
from specplug_hf.paged.store import PagedStore

if TYPE_CHECKING:
    from specplug_hf.host import HFHost

logger = logging.getLogger(__name__)


class RecordedRounds:
    """Recordings of one host's rounds. Its store is a paged one; a draft model has one of its own."""

    def __init__(self, host: HFHost, recorder: Recorder) -> None:
        assert isinstance(host.store, PagedStore)
        self._host, self._store, self.graphs = host, host.store, Graphs(recorder)
        self._stamps: dict[PagedStore, int] = {}  # as the recordings know them

    def install(self, drafters: Sequence[Drafter]) -> None:
        """Let those of the working copies `drafters` draft by replays that can."""
        for drafter in {id(drafter): drafter for drafter in drafters}.values():  # one may have several trees
            cause = why_eager_draft(drafter, self._host.device)
            if cause is None:
                drafter.draft = RecordedDraft(drafter, self.run)  # type: ignore[method-assign]
            elif drafter.drafts_with_model:
                logger.info("specplug: drafts of %s run eagerly: %s.", drafter.key, cause)

    def verify(self, batch: Batch, trees: TreeBatch) -> Tensor | None:
        """Logits [B, N, V] of all nodes; None: read them eagerly."""

        def function(tokens: Tensor, lengths: Tensor, ancestors: Tensor, depths: Tensor) -> Tensor:
            static = replace(trees, tokens=tokens, ancestors=ancestors, depths=depths)
            return self._host.read(lengths, static, places=lengths, replayed=True).logits

        self._store.reserve(max(self._host.lengths) + trees.num_nodes)
        inputs = (trees.tokens, batch.lengths, trees.ancestors, trees.depths)
        return self.run(self._store, ("verify", trees.num_nodes), inputs, function)

    def run(
        self, store: PagedStore, kind: Hashable, inputs: tuple[Tensor, ...], function: Callable[..., Any]
    ) -> Any | None:
        """What `function(*inputs)` returns, which reads and writes `store`; None: run it eagerly. See `Graphs.run`."""
        if self._stamps.setdefault(store, store.stamp) != store.stamp:
            self._stamps[store] = store.stamp
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
