"""Preallocated keys and values of all layers, every row at its own length, grown ahead of need; nothing is concatenated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from specplug_hf.step import Step
from specplug_hf.views import View
from specplug_kernels import commit_kv, write_kv

LayerKV = tuple[Tensor, Tensor]  # keys [B, H, n, D], values [B, H, n, Dv]


SCRATCH = 64  # slots for draft nodes behind what may be committed


def slots_for(columns: int, room: int) -> int:
    """Slots that a store of `columns` tokens starts with, `room` more of which a row may take: for all if that no more than
    doubles it. So it rarely has to grow, and a long call that ends early has not paid for its length."""
    return columns + min(columns, room) + SCRATCH


def compacted(rows: Sequence[int]) -> list[int]:
    """The batch rows that stay (ascending) in the order in which the fewest move: the last ones go where others left."""
    count = len(rows)
    movers = iter(row for row in rows if row >= count)
    staying = {row for row in rows if row < count}
    return [place if place in staying else next(movers) for place in range(count)]


@dataclass(slots=True)
class _Group:
    """Layers whose keys and values have one shape, stacked, so that moving entries is one operation for all of them."""

    layers: list[int]
    keys: Tensor  # [layers, B, H, capacity, D]
    values: Tensor  # [layers, B, H, capacity, Dv]


class KVStore:
    """Storage only: which slot holds what is the views' business (views.py).

    Slots nobody wrote hold zeros: a masked slot's value is multiplied by zero, which NaN would survive. A forward's step and
    what it writes go through here: how a slot is found is the layout's business (paged_store.py has another).
    """

    def __init__(self, prompt: Sequence[LayerKV], capacity: int) -> None:
        """Room for `capacity` slots a row in the shape of `prompt`, whose contents are not copied."""
        self.capacity = capacity
        self._expected: int | None = None
        self.num_layers = len(prompt)
        self.num_rows = prompt[0][0].shape[0]
        self._groups: list[_Group] = []
        by_shape: dict[object, list[int]] = {}
        for layer, (keys, values) in enumerate(prompt):
            kind = (keys.shape[1], keys.shape[3], values.shape[3], keys.dtype, keys.device)
            by_shape.setdefault(kind, []).append(layer)
        for layers in by_shape.values():
            keys, values = prompt[layers[0]]
            shape = (len(layers), *keys.shape[:2], capacity)
            self._groups.append(
                _Group(layers, *(self._zeros(part, (*shape, part.shape[3])) for part in (keys, values)))
            )
        self._refresh()

    def _zeros(self, like: Tensor, shape: tuple[int, ...]) -> Tensor:
        """[layers, B, H, capacity, D], however that lies in memory."""
        return like.new_zeros(shape)

    def _refresh(self) -> None:
        self.keys: list[Tensor] = [torch.empty(0)] * self.num_layers
        self.values: list[Tensor] = [torch.empty(0)] * self.num_layers
        for group in self._groups:
            for place, layer in enumerate(group.layers):
                self.keys[layer] = group.keys[place]
                self.values[layer] = group.values[place]

    @property
    def bytes_per_token(self) -> int:
        """Bytes of one token's keys and values over all layers."""
        return sum(
            t.shape[0] * t.shape[2] * t.shape[4] * t.element_size() for g in self._groups for t in (g.keys, g.values)
        )

    def load(self, layer: int, keys: Tensor, values: Tensor, slots: Tensor | None, first: int) -> None:
        """Fill `layer` with `keys`, `values` [B, H, n, D] that stand for columns first..first+n-1.

        `slots` [B, columns] int64 says where each column goes (-1: nowhere); None: column c goes to slot c.
        """
        stop = first + keys.shape[2]
        if slots is None:
            self.keys[layer][:, :, first:stop] = keys
            self.values[layer][:, :, first:stop] = values
            return
        where = slots[:, first:stop].to(keys.device)
        for row in range(self.num_rows):
            kept = where[row] >= 0
            self.keys[layer][row].index_copy_(1, where[row][kept], keys[row][:, kept])
            self.values[layer][row].index_copy_(1, where[row][kept], values[row][:, kept])

    def expect(self, slots: int) -> None:
        """No row will need more than `slots`, as far as anybody knows: growth ahead of need ends there."""
        self._expected = slots

    def reserve(self, slots: int) -> None:
        """Make room for at least `slots` a row. When it must grow it doubles, but not beyond what is expected."""
        if slots <= self.capacity:
            return
        capacity = self._enlarged(slots)
        for group in self._groups:
            group.keys = self._grown(group.keys, capacity)
            group.values = self._grown(group.values, capacity)
        self.capacity = capacity
        self._refresh()

    def _enlarged(self, slots: int) -> int:
        """The next capacity. Doubling copies every entry twice or so in all; whoever needs more than was expected after all
        gets as much again of that, so that one slot more a round does not copy everything every round."""
        ahead = 2 * self.capacity
        if self._expected is not None:
            ahead = min(ahead, self._expected + 2 * max(0, slots - self._expected))
        return max(slots, ahead)

    def _grown(self, old: Tensor, capacity: int) -> Tensor:
        new = self._zeros(old, (*old.shape[:3], capacity, old.shape[4]))
        new[:, :, :, : old.shape[3]] = old
        return new

    def row(self, place: int) -> list[LayerKV]:
        """Every layer's keys [H, capacity, D] and values [H, capacity, Dv] of the row at `place` in the batch: views."""
        return [(keys[place], values[place]) for keys, values in zip(self.keys, self.values, strict=True)]

    def step(self, view: View, lengths: list[int], *nodes: Any, **layout: Any) -> Step:
        """What a forward of tree nodes sees and where it writes: the arguments of `Step`."""
        return Step(view, lengths, *nodes, **layout)

    def write(self, layer: int, keys: Tensor, values: Tensor, step: Step) -> LayerKV:
        """Put the nodes' `keys`, `values` [B, H, n, D] where `step` says; what attention reads then: [B, H, total, D]."""
        mine = self.keys[layer], self.values[layer]
        slots = step.write_on(mine[0].device)
        for buffer, new in zip(mine, (keys, values), strict=True):
            write_kv(buffer, new, slots, step.lines(buffer, slots))
        return mine[0][:, :, : step.total], mine[1][:, :, : step.total]

    def move(self, source: Tensor, target: Tensor) -> None:
        """Copy slots `source` to `target`, both [B, m] int64, in every layer; all is read before anything is written."""
        for group in self._groups:
            device = group.keys.device
            commit_kv((group.keys, group.values), source.to(device), target.to(device))

    def copy_from(self, other: KVStore, source: Tensor, target: Tensor) -> None:
        """Copy slots `source` [B, m] of `other`, of the same layers, to slots `target` [B, m] here."""
        rows, regions = self._rows(source.device)[:, None], other._rows(source.device)[:, None]
        for mine, theirs in zip(self._groups, other._groups, strict=True):
            mine.keys[:, rows, :, target] = theirs.keys[:, regions, :, source]
            mine.values[:, rows, :, target] = theirs.values[:, regions, :, source]

    def _rows(self, device: torch.device) -> Tensor:
        """Where the batch's rows stand in the tensors: [B] int64."""
        return torch.arange(self.num_rows, device=device)

    @property
    def device(self) -> torch.device:
        """Where the first layer's keys are."""
        return self.keys[0].device

    def columns(self, layer: int, width: int) -> LayerKV:
        """The first `width` slots of every row: keys [B, H, width, D] and values, a view where rows stand one after another."""
        return self.keys[layer][:, :, :width], self.values[layer][:, :, :width]

    def take(self, layer: int, keys: Tensor, values: Tensor, positions: Tensor, rows: Tensor) -> None:
        """Put `positions` [B, H or 1, K] of `keys`, `values` [B, H, T, D] into the first K slots of the batch rows `rows` [r].

        A position of -1 stands for none: the slot is left as it is.
        """
        index = positions.expand(-1, keys.shape[1], -1)[..., None]
        for mine, theirs in ((self.keys[layer], keys), (self.values[layer], values)):
            slots = mine[:, :, : index.shape[2]]
            found = theirs.gather(2, index.clamp(min=0).expand(-1, -1, -1, theirs.shape[3]))
            slots[rows] = torch.where(index < 0, slots, found)[rows]

    def rows_like(self, capacity: int) -> KVStore:
        """An empty store of the same layers and rows, one row after another."""
        return KVStore([self.columns(layer, 1) for layer in range(self.num_layers)], capacity)

    def like(self, capacity: int) -> KVStore:
        """An empty store of the same layers and rows."""
        return type(self)(list(zip(self.keys, self.values, strict=True)), capacity)

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Keep only the batch rows `rows`, in place, as `compacted` orders them: a row moves only into the place of one that left."""
        for place, row in enumerate(rows):
            if place != row:
                for group in self._groups:
                    group.keys[:, place] = group.keys[:, row]
                    group.values[:, place] = group.values[:, row]
        self.num_rows = len(rows)
        for group in self._groups:
            group.keys = group.keys[:, : self.num_rows]
            group.values = group.values[:, : self.num_rows]
        self._refresh()
