"""The heads as what a tree is filled by: one level, one head."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from specplug.host import Batch
from specplug.mlp.checkpoint import check_hidden
from specplug.mlp.heads import Heads
from specplug.tree import TreeShape


class HeadsRunner:
    """A `DraftRunner` that reads no committed token: `Batch.hidden` says all it knows of them. At most `n_predict` levels."""

    def __init__(self, heads: Heads) -> None:
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
        self._states = self.heads.step(self.heads.start(hidden.to(self._dtype))[:, None], batch.roots[:, None], 0)
        return self.heads.logits(self._states, 0)

    def extend(self, tokens: Tensor, level: int, ancestors: Tensor | None = None) -> Tensor:
        before, count = self._states, self._states.shape[1]
        if count > 1:  # else the one state is everybody's
            if ancestors is None:
                before = before.index_select(1, _parents(self._shape, level, tokens.device))
            else:  # the parent is the only ancestor in the level above
                above = ancestors[:, -tokens.shape[1] :, self._first : self._first + count]
                parents = above.int().argmax(-1)
                before = before.gather(1, parents[..., None].expand(-1, -1, before.shape[2]))
        self._first += count
        self._states = self.heads.step(before, tokens, level)
        return self.heads.logits(self._states, level)


@lru_cache(maxsize=256)
def _parents(shape: TreeShape, level: int, device: torch.device) -> Tensor:
    """Where the parents of the nodes of `level` stand in the level above: [w] int64."""
    start, stop = shape.levels[level]
    above = shape.levels[level - 1][0]
    return torch.tensor([parent - above for parent in shape.parents[start:stop]], device=device)
