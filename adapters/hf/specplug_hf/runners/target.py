"""The target drafting over a sparse view of its own cache, or with some of its layers left out."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from specplug import Batch, TreeShape, Verdict
from specplug.drafters import DraftRequest
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
        self._sparse: SparseCopy | None = None
        if not isinstance(self.view, RingView):
            self.store = host.store

    @property
    def devices(self) -> set[torch.device]:
        """Where its layers are."""
        return {keys.device for keys in self.host.store.keys}

    def inputs(self, request: DraftRequest) -> tuple[Tensor, ...] | None:
        """Nothing beside the batch; see `Runner.inputs`. A text that fits into the window is read whole, and grows."""
        if self._selection is None or min(self.host.lengths) <= self._selection.size:
            return None
        self.host.store.reserve(max(self.host.lengths) + request.shape.num_nodes + 1)
        return ()

    def unread(self, batch: Batch) -> int:
        """Nothing: what the target has read is there."""
        return 0

    def begin(self, batch: Batch, shape: TreeShape) -> Tensor:
        """Take over what was committed, then read the root; see DraftRunner."""
        self._shape, self._places = shape, batch.lengths
        self.lengths = list(self.host.lengths)
        if isinstance(self.view, RingView):
            self._sync(self.view)
        positions, one = self.host.node_positions(batch.lengths, None), torch.ones_like(batch.lengths)
        logits = self._read_chain(batch.roots[:, None], positions, one)
        self._settle([1] * batch.num_rows, 1)
        return logits

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
        return self.host.node_positions(self._places, depths)

    def _shifts(self) -> Tensor | None:
        return self.host.shifts

    def _extras(self, count: int) -> dict[str, Any]:
        return self.host.extras.for_nodes(self.host.rows, count)

    def commit(self, verdict: Verdict, kept: list[int]) -> None:
        """The target's own KV of what was accepted is copied at the next `begin`."""

    def keep_rows(self, rows: list[int]) -> None:
        """Only the batch rows `rows` stay."""
        if self._sparse is not None:
            self._sparse.keep_rows(rows)
