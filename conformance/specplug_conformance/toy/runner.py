"""Drafting in the toy framework: over the target's own cache, or by another model that simply reads the text again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from specplug import Batch, TreeShape
from specplug.kv_policies import KVPolicy
from specplug.tree import shape_tensors
from specplug_conformance.toy.model import ToyModel

if TYPE_CHECKING:
    from specplug_conformance.toy.host import ToyHost


class ToyRunner:
    """One drafting model with its KV policy."""

    def __init__(self, host: ToyHost, model: ToyModel | None, policy: KVPolicy) -> None:
        self.host, self.policy, self.is_target = host, policy, model is None
        self.model = host.model if model is None else model
        self.vocab_size = host.vocab_size
        self.identity = "toy"
        self.reads: dict[int, int] = {}  # committed positions that each row's draft sees

    def unread(self, batch: Batch) -> int:
        return 0  # it reads everything again, every time

    def begin(self, batch: Batch, shape: TreeShape) -> Tensor:
        host, rows = self.host, torch.tensor(self.host.rows)
        self._shape, self._lengths = shape, batch.lengths
        width = int(batch.lengths.max())
        if self.is_target:
            self._entries, self._places = host.entries[rows, :width], host.places[rows, :width]
        else:
            self._entries = self.model.entries(host.text[rows, :width])
            self._places = torch.arange(width).expand(len(rows), -1)
        self._selected = self._select(batch.lengths, width)
        self.reads = dict(zip(host.rows, self._selected.sum(1).tolist(), strict=True))
        self._tokens = batch.roots[:, None]
        return self._forward(batch.roots[:, None], 0)

    def extend(self, tokens: Tensor, level: int, ancestors: Tensor | None = None) -> Tensor:
        self._tokens = torch.cat([self._tokens, tokens], dim=1)
        return self._forward(tokens, level, ancestors)

    def _forward(self, tokens: Tensor, level: int, ancestors: Tensor | None = None) -> Tensor:
        """Logits at the nodes of `level`, which see what is selected and their own ancestors."""
        known, (start, stop) = shape_tensors(self._shape, tokens.device), self._shape.levels[level]
        positions = self._lengths[:, None] + known.depths[:stop]
        entries = torch.cat([self._entries, self.model.entries(self._tokens)], dim=1)
        places = torch.cat([self._places, positions], dim=1)
        lineage = known.ancestors[:stop, :stop] if ancestors is None else ancestors
        above = lineage[..., start:stop, :] & ~torch.eye(stop, dtype=torch.bool)[start:stop]
        rows, count = len(tokens), stop - start
        seen = torch.cat(
            [self._selected[:, None].expand(-1, count, -1), above.expand(rows, -1, -1)], dim=2
        )  # [B, n, committed + nodes]
        return self.model.logits(tokens, positions[:, start:stop], entries, places, seen)

    def _select(self, lengths: Tensor, width: int) -> Tensor:
        """[B, width] bool: the committed positions that the policy selects."""
        position = torch.arange(width)
        committed = position < lengths[:, None]
        selection = self.policy.select(lengths)
        if selection is None:
            return committed
        anchors = selection.anchors[:, 0, 0].expand(len(lengths), -1)
        anchored = (anchors[:, :, None] == position).any(1)
        return committed & (anchored | (position >= lengths[:, None] - selection.window))
