"""Clusters of a layer's keys, by row and KV head: made by k-means, joined by what is committed later."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn.functional import normalize

from specplug.kv_policies.positions import keys_at, widened

ITERATIONS = 5  # of Lloyd's algorithm
GROWTH = 2  # times as long as when its clusters were made: then a row gets new ones
BLOCK = 2**22  # similarities held at once: 16 MiB of float32
NONE = -1  # label of a position that is in no cluster


@dataclass(slots=True)
class Clusters:
    """Which cluster each key belongs to, and the mean key of each. K is the most clusters of any row.

    Clusters are by cosine similarity: a key joins the mean whose direction is nearest to its own. The first means are keys at
    even distances, so nothing is drawn. Later keys join the nearest cluster and move its mean, nothing else; a row that
    has doubled since its clusters were made gets new ones. What happens to a row depends on that row alone.
    """

    means: Tensor  # [B, Hkv, K, D], at least float32
    sizes: Tensor  # [B, Hkv, K] int64
    labels: Tensor  # [B, Hkv, P] int64: the cluster of each position; NONE: it has not joined
    counts: Tensor  # [B] int64: clusters that the row has
    known: Tensor  # [B] int64: positions that have joined
    made: Tensor  # [B] int64: how many there were when the clusters were made

    @classmethod
    def none(cls, keys: Tensor) -> Clusters:
        """Rows without clusters, for keys such as `keys` [B, Hkv, T, D]."""
        rows, heads, _, width = keys.shape
        whole = torch.zeros(rows, dtype=torch.int64, device=keys.device)
        empty = whole.new_zeros(rows, heads, 0)
        exact = torch.promote_types(keys.dtype, torch.float32)
        return cls(keys.new_zeros(rows, heads, 0, width, dtype=exact), empty, empty, whole, whole, whole)

    def update(self, keys: Tensor, ends: Tensor, cluster: int) -> None:
        """Let the first `ends` [B] positions of `keys` [B, Hkv, T, D] join, in clusters of `cluster` keys on average.

        Waits for the device.
        """
        self._reserve(positions=keys.shape[2])
        outgrown = (ends > GROWTH * self.made).nonzero().flatten()
        if len(outgrown):
            self._make(keys, ends, cluster, outgrown)
        missing = int((ends - self.known).max())
        if missing > 0:
            self._join(keys, ends, missing)

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Only `rows` stay."""
        chosen = torch.tensor(rows, dtype=torch.int64, device=self.known.device)
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name)[chosen])

    def _reserve(self, positions: int = 0, clusters: int = 0) -> None:
        """Room for so many; the last position is one that nobody has: what is written there is not kept."""
        self.labels = widened(self.labels, positions + 1, dim=2, value=NONE)
        self.means = widened(self.means, clusters, dim=2)
        self.sizes = widened(self.sizes, self.means.shape[2], dim=2)

    def _make(self, keys: Tensor, ends: Tensor, cluster: int, rows: Tensor) -> None:
        """New clusters of the first `ends` positions for `rows` [n]: k-means with `ITERATIONS` steps."""
        keys, ends = keys[rows], ends[rows]
        counts = (ends + cluster - 1) // cluster
        most = int(counts.max())
        self._reserve(clusters=most)
        first = torch.arange(most, device=keys.device) * cluster
        started = (first < ends[:, None])[:, None, :, None]
        seeds = keys_at(keys, first.expand(len(rows), -1)).to(self.means.dtype)
        means = seeds.where(started, 0)  # whatever lies beyond must not spread
        valid = torch.arange(keys.shape[2], device=keys.device) < ends[:, None]
        for _ in range(ITERATIONS):
            labels, sums, sizes = _assigned(keys, valid, means, counts)
            means = (sums / sizes[..., None]).where(sizes[..., None] > 0, means)
        beyond = (0, self.means.shape[2] - most)
        self.means[rows] = torch.nn.functional.pad(means, (0, 0, *beyond))
        self.sizes[rows] = torch.nn.functional.pad(sizes, beyond)
        self.labels[rows, :, : keys.shape[2]] = labels
        self.counts = self.counts.index_copy(0, rows, counts)
        self.known = self.known.index_copy(0, rows, ends)
        self.made = self.made.index_copy(0, rows, ends)

    def _join(self, keys: Tensor, ends: Tensor, missing: int) -> None:
        """Positions from `known` to `ends`, at most `missing` a row, go to the nearest mean."""
        position = self.known[:, None] + torch.arange(missing, device=keys.device)
        valid = position < ends[:, None]
        labels, sums, sizes = _assigned(keys_at(keys, position), valid, self.means, self.counts)
        together = self.sizes + sizes
        moved = (self.means * self.sizes[..., None] + sums) / together[..., None]
        self.means, self.sizes = moved.where(sizes[..., None] > 0, self.means), together
        place = position.where(valid, self.labels.shape[2] - 1)[:, None].expand_as(labels)
        self.labels.scatter_(2, place, labels)
        self.known = ends


def _assigned(keys: Tensor, valid: Tensor, means: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The nearest of each row's first `counts` [B] `means` for its `valid` [B, N] keys [B, H, N, D].

    Labels [B, H, N], NONE where not valid; sums [B, H, K, D] and sizes [B, H, K] of the keys of each cluster. In blocks of
    at most `BLOCK` similarities, or of one position.
    """
    rows, heads, number, width = keys.shape
    count = means.shape[2]
    directions = normalize(means, dim=3).to(keys.dtype)  # the length of a key does not change which one is nearest
    closed = (torch.arange(count, device=keys.device) >= counts[:, None])[:, None, :, None]
    directions = directions[:, :, :1].where(closed, directions).mT  # as near as the first is never nearer
    sums = means.new_zeros(rows, heads, count + 1, width)  # the last one takes what is not valid
    sizes = counts.new_zeros(rows, heads, count + 1)
    labels = []
    step = max(1, BLOCK // max(1, rows * heads * count))
    for start in range(0, number, step):
        block = keys[:, :, start : start + step]
        nearest = (block @ directions).argmax(3)
        nearest = nearest.where(nearest < counts[:, None, None], 0)  # but for rounding, it is one that the row has
        label = nearest.where(valid[:, None, start : start + step], count)
        sums.scatter_add_(2, label[..., None].expand_as(block), block.to(sums.dtype))
        sizes.scatter_add_(2, label, torch.ones_like(label))
        labels.append(label)
    label = torch.cat(labels, dim=2)
    return label.where(label < count, NONE), sums[:, :, :-1], sizes[:, :, :-1]
