"""The target drafting over a sparse view of its own cache, or with some of its layers left out."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor

from specplug import Batch, TreeShape, Verdict
from specplug.host import SkippedLayers
from specplug.kv_policies import KVPolicy
from specplug_hf.paged.store import PagedStore
from specplug_hf.rotation import rotation_of
from specplug_hf.runners.base import Runner
from specplug_hf.skipping import LayerSkipping
from specplug_hf.sparse import SparseCopy
from specplug_hf.views import RingView


class SelfRunner(Runner):
    """The target itself. With a ring, committed KV is copied from the target's store as it is committed, no more."""

    def __init__(self, host: Any, policy: KVPolicy, skipped: SkippedLayers | None = None) -> None:
        super().__init__(host.forward, policy, isinstance(host.store, PagedStore))
        self.host = host
        self._skipping = None if skipped is None else LayerSkipping(host.model, skipped)
        self.vocab_size = host.vocab_size
        self.recording = False  # what runs is recorded, and will be replayed for longer texts (graphs/)
        self._places: Tensor  # tokens of each row in the target's cache [B], on the device
        self._sparse: SparseCopy | None = None

    def unread(self, batch: Batch) -> int:
        """Nothing: what the target has read is there."""
        return 0

    def begin(self, batch: Batch, shape: TreeShape) -> Tensor:
        """Take over what was committed, then read the root; see DraftRunner."""
        self._shape, self._places = shape, batch.lengths
        self.lengths = list(self.host.lengths)
        if isinstance(self.view, RingView):
            self._sync(self.view)
        else:
            self.store = self.host.store
        return self._run_chain(
            batch.roots[:, None], [1] * batch.num_rows, self.host.node_positions(batch.lengths, None)
        )

    def _sync(self, ring: RingView) -> None:
        if self._sparse is None:
            turns = ring.reach is not None
            rotation = rotation_of(self.host.model) if turns else None
            self._sparse = SparseCopy(self.host.store, self.policy, ring, self.host.queries, rotation)
            self.store = self._sparse.store
        self._sparse.sync(self.lengths)

    def _mode(self) -> AbstractContextManager[None]:
        return nullcontext() if self._skipping is None else self._skipping

    def _positions(self, depths: Tensor) -> Tensor:
        return self.host.node_positions(self._places + 1, depths)

    def _shifts(self) -> Tensor | None:
        return self.host.shifts

    @property
    def _layout(self) -> dict[str, Any]:
        if self._selection is None:
            return {}
        root_read = self.lengths[0] > self.host.lengths[0]
        places = self._places + 1 if root_read else self._places
        return {"selection": self._selection, "places": places, "replayed": self.recording}

    def _extras(self, count: int) -> dict[str, Any]:
        return self.host.extras.for_nodes(self.host.rows, count)

    def commit(self, verdict: Verdict, kept: list[int]) -> None:
        """The target's own KV of what was accepted is copied at the next `begin`."""

    def keep_rows(self, rows: list[int]) -> None:
        """Only the batch rows `rows` stay."""
        if self._sparse is not None:
            self._sparse.keep_rows(rows)
