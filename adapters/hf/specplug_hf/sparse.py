"""A draft's own copy of what its policy selects of a cache: anchors and a window, kept up to date by what was committed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from specplug.kv_policies import ChoosingPolicy, KVPolicy, LayerContext
from specplug_hf.rotation import Rotation
from specplug_hf.store import SCRATCH, KVStore
from specplug_hf.views import RingView


class Queries(Protocol):
    """Where a policy finds the last committed queries of a layer (queries.py)."""

    def layer(self, layer: int) -> tuple[Tensor, Tensor, float]:
        """Queries [B, Hq, q, D], how many of each row's are real [B], and the scale of their dot products."""
        ...


class SparseCopy:
    """The anchors' and the window's keys and values of `source`, laid out as `ring` says, in `store`.

    What a policy chooses by looking (`ChoosingPolicy`) takes the place of the first positions, a layer and head at a time, as
    soon as a row is longer than the budget, and again every `refresh` rounds. With a `reach` the anchors' keys are turned to
    stand no further than that before the root.
    """

    def __init__(
        self, source: KVStore, policy: KVPolicy, ring: RingView, queries: Queries | None, rotation: Rotation | None
    ) -> None:
        self.ring = ring
        self.store = source.rows_like(ring.size + SCRATCH)
        self._source, self._queries, self._rotation = source, queries, rotation
        rows = self.store.num_rows
        self.copied = [0] * rows  # positions [0, copied) of each row are in the ring, as far as it holds them
        self._chosen = [False] * rows
        self._rounds = [0] * rows  # of each row, since the last choice: what others do must not change what a row draws
        self._chooser = policy.open() if isinstance(policy, ChoosingPolicy) else None
        self._refresh = policy.refresh if isinstance(policy, ChoosingPolicy) else 0

    def sync(self, lengths: list[int]) -> None:
        """Take over what was committed since, for rows of `lengths` positions."""
        self._copy_first(lengths)
        ring = self.ring
        first = [max(ring.oldest(n), done) for n, done in zip(lengths, self.copied, strict=True)]
        width = max(n - start for n, start in zip(lengths, first, strict=True))
        if width > 0:
            # rows that need fewer copy some positions again, each onto itself
            ends = torch.tensor(lengths)[:, None]
            self._copy((ends - width + torch.arange(width)).clamp(min=0))
        self.copied = list(lengths)
        if self._chooser is not None:
            self._choose(lengths)
        if ring.reach is not None:
            self._turn(lengths, ring.reach)

    def _copy_first(self, lengths: list[int]) -> None:
        sinks = min(self.ring.sink, max(lengths))
        if not sinks or min(self.copied) >= self.ring.sink:
            return
        positions = torch.arange(sinks).expand(len(lengths), -1)
        newest = torch.tensor(lengths)[:, None] - 1  # goes onto itself
        self._copy(torch.where(torch.tensor(self._chosen)[:, None], newest, positions))

    def _copy(self, positions: Tensor) -> None:
        positions = positions.to(self._source.device)
        self.store.copy_from(self._source, positions, self.ring.slots(positions))

    def _choose(self, lengths: list[int]) -> None:
        """Put what the policy chooses into the first slots of every row that is due."""
        self._rounds = [rounds + 1 for rounds in self._rounds]
        again = [bool(self._refresh) and rounds > self._refresh for rounds in self._rounds]
        due = [
            n > self.ring.size and (old or not done) for n, old, done in zip(lengths, again, self._chosen, strict=True)
        ]
        if not any(due):
            return
        assert self._chooser is not None and self._queries is not None
        counts = torch.tensor(lengths, device=self._source.device)
        rows = torch.tensor(due, device=self._source.device).nonzero().squeeze(1)
        for layer in range(self._source.num_layers):
            keys, values = self._source.columns(layer, max(lengths))
            if not keys.shape[1]:
                continue
            queries, real, scale = self._queries.layer(layer)
            here = counts.to(keys.device)
            choices = (here - self.ring.window).clamp(min=0)
            positions = self._chooser.choose(
                LayerContext(layer, keys, values, queries, real.to(keys.device), here, choices, scale)
            )
            self.store.take(layer, keys, values, positions, rows.to(keys.device))
        self._chosen = [done or now for done, now in zip(self._chosen, due, strict=True)]
        self._rounds = [1 if now else rounds for rounds, now in zip(self._rounds, due, strict=True)]

    def _turn(self, lengths: list[int], reach: int) -> None:
        """The anchors' keys as they would be at most `reach` positions before the root."""
        assert self._rotation is not None
        sinks = min(self.ring.sink, *lengths)
        if max(lengths) <= reach or not sinks:
            return
        shifts = (torch.tensor(lengths)[:, None] - torch.arange(sinks) - reach).clamp(min=0)
        for layer in range(self._source.num_layers):
            keys, _ = self._source.columns(layer, sinks)
            self.store.keys[layer][:, :, :sinks] = self._rotation.turned(layer, keys, shifts)

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Only the batch rows `rows` stay, of the source already."""
        self.store.keep_rows(rows)
        self.copied = [self.copied[row] for row in rows]
        self._chosen = [self._chosen[row] for row in rows]
        self._rounds = [self._rounds[row] for row in rows]
        if self._chooser is not None:
            self._chooser.keep_rows(rows)
