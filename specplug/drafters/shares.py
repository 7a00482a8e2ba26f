"""How a merged tree's places are shared among its parts: by how often each part's nodes were right."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from specplug.tree import TreeBatch

NODES = 128  # of a part that are told apart; those behind count as the last
FIRST, FALLING = (
    0.6,
    0.85,
)  # what is believed of a part's first node, and of each against the one before, before any was seen
WEIGHT = 4.0  # seen nodes that this belief is worth
FADING = 0.98  # what was seen counts for so much of itself when the next round has been seen


@dataclass(frozen=True, slots=True)
class Proposed:
    """A part's tree in a round, and which of its nodes no earlier part had, [B, n] bool."""

    trees: TreeBatch
    fresh: Tensor


class Shares:
    """P(a part's k-th node is on the accepted path | no part before it proposed the node too), learnt from what was committed.

    Used by any number of threads.
    """

    def __init__(self, parts: int) -> None:
        self._lock = threading.Lock()
        self._seen = torch.zeros(parts, NODES, dtype=torch.float64)
        self._right = torch.zeros_like(self._seen)
        self._belief = (FIRST * FALLING ** torch.arange(NODES, dtype=torch.float64)).expand(parts, -1)

    def worth(self, learnt: bool) -> Tensor:
        """[parts, NODES] float64 at most 1, by a part's order of nodes and not rising with it. Not `learnt`: the belief alone."""
        if not learnt:
            return self._belief
        with self._lock:
            found = (self._right + WEIGHT * self._belief) / (self._seen + WEIGHT)
        return found.cummin(1).values

    def observe(self, proposed: Sequence[Proposed], committed: Tensor, counts: Tensor) -> None:
        """Learn from a round that committed the first `counts[b]` of `committed` [B, P]. Waits for the device, once."""
        places, seen, right = [], [], []
        for part in proposed:
            on_path, known = judged(part.trees, committed, counts)
            places.append(order_of(part.trees)[1:].clamp(max=NODES) - 1)
            seen.append((known & part.fresh)[:, 1:].sum(0))
            right.append((on_path & part.fresh)[:, 1:].sum(0))
        widths = [len(place) for place in places]
        counted = torch.stack([torch.cat(seen), torch.cat(right)]).cpu().double()
        with self._lock:
            self._seen *= FADING
            self._right *= FADING
            for number, (place, found) in enumerate(zip(places, torch.split(counted, widths, 1), strict=True)):
                self._seen[number].index_add_(0, place, found[0])
                self._right[number].index_add_(0, place, found[1])


def judged(trees: TreeBatch, committed: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Which nodes are on the path of the `counts[b]` tokens `committed` [B, P], and of which that is known: [B, N] bool each.

    Nothing is known of a node behind the last committed token.
    """
    depths = trees.depths.expand_as(trees.tokens)
    inside = depths <= counts[:, None]
    wanted = committed.gather(1, (depths - 1).clamp(min=0, max=committed.shape[1] - 1))
    wrong = inside & (depths > 0) & (trees.tokens != wanted)
    off = (wrong[:, None, :] & trees.ancestors).any(2)
    known = inside | off
    if trees.valid is not None:
        known = known & trees.valid
    return known & ~off, known


def order_of(trees: TreeBatch) -> Tensor:
    """The place of each node in the order in which a smaller tree would keep them, on the CPU: [N] int64."""
    return torch.arange(trees.num_nodes) if trees.shape is None else torch.tensor(trees.shape.priority)


def sizes(worth: Tensor, size: int) -> list[int]:
    """Draft tokens of each part when the `size` nodes of most `worth` [parts, NODES] are taken; nobody gets nothing."""
    parts = len(worth)
    shares = [0] * parts
    order = worth[:, :size].T.flatten().argsort(descending=True, stable=True)[:size]
    for place in order.tolist():
        shares[place % parts] += 1
    for part in range(min(parts, size)):
        if not shares[part]:
            shares[shares.index(max(shares))] -= 1
            shares[part] = 1
    return shares
