"""The heads as what a tree is filled by: one level, one head."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from specplug.host import Batch
from specplug.mlp.checkpoint import check_hidden
from specplug.mlp.cpu import CPUHeads
from specplug.mlp.heads import Heads
from specplug.tree import TreeShape


class HeadsRunner:
    """A `DraftRunner` that reads no committed token: `Batch.hidden` says all it knows of them. At most `n_predict` levels."""

    def __init__(self, heads: Heads | CPUHeads) -> None:
        self.heads = heads
        self.vocab_size = heads.config.vocab_size
        self._dtype = heads.dtype

    def unread(self, batch: Batch) -> int:
        return 0

    def begin(self, batch: Batch, shape: TreeShape) -> Tensor:
        hidden = batch.hidden
        assert hidden is not None  # Need.HIDDEN_STATES
        check_hidden(self.heads.config, hidden.shape[-1])
        self._shape = shape
        self._first = 0  # of the nodes that the states are of, where it stands among the forwarded ones
        self._states = self.heads.step(self.heads.start(hidden.to(self._dtype)), batch.roots, 0)
        return self.heads.logits(self._states, 0).unsqueeze(1)

    def extend(self, tokens: Tensor, level: int, ancestors: Tensor | None = None) -> Tensor:
        rows, width = tokens.shape
        before, count = self._states, self._states.shape[0] // rows
        if count > 1 or width > 1:
            before = before.index_select(0, self._parents(rows, width, count, level, ancestors))
        self._first += count
        self._states = self.heads.step(before, tokens.flatten(), level)
        return self.heads.logits(self._states, level).view(rows, width, self.vocab_size)

    def _parents(self, rows: int, width: int, count: int, level: int, ancestors: Tensor | None) -> Tensor:
        """Where among the states of the level above, `count` a row, those of the parents stand: [rows * width] int64."""
        device = self._states.device
        if ancestors is None:
            return _parents(self._shape, level, rows, device)
        # the parent is the only ancestor in the level above
        own = ancestors[:, -width:, self._first : self._first + count].int().argmax(-1)
        return (own + torch.arange(0, rows * count, count, device=device)[:, None]).flatten()


@lru_cache(maxsize=256)
def _parents(shape: TreeShape, level: int, rows: int, device: torch.device) -> Tensor:
    """Where the parents of the nodes of `level` stand among the nodes of the level above, all rows of a batch in one."""
    (first, above), (start, stop) = shape.levels[level - 1 : level + 1]
    own = torch.tensor([parent - first for parent in shape.parents[start:stop]], device=device)
    return (own + torch.arange(0, rows * (above - first), above - first, device=device)[:, None]).flatten()
