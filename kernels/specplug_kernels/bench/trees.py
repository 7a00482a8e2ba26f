"""The trees of the benchmark: every node has two children, filled level by level."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

CHILDREN = 2


@dataclass(frozen=True, slots=True)
class Tree:
    """``parents`` [n], root -1; ``depths`` [n]; ``ancestors`` [n, n] bool, [i, j]: i sees j; ``children`` [n, 2], -1 = none.

    ``width``: nodes on the longest path. ``visible_pairs``: pairs of a node and a node it sees, itself included.
    """

    parents: Tensor
    depths: Tensor
    ancestors: Tensor
    children: Tensor
    width: int
    visible_pairs: int


def binary_tree(nodes: int, device: torch.device | str = "cpu") -> Tree:
    """The tree in which node i hangs on node (i - 1) // 2."""
    parents = [(node - 1) // CHILDREN if node else -1 for node in range(nodes)]
    ancestors = torch.eye(nodes, dtype=torch.bool)
    children = torch.full((nodes, CHILDREN), -1)
    for node, parent in enumerate(parents[1:], start=1):
        ancestors[node] |= ancestors[parent]
        children[parent, (node - 1) % CHILDREN] = node
    depths = ancestors.sum(1) - 1
    there = [t.to(device) for t in (torch.tensor(parents), depths, ancestors, children)]
    return Tree(*there, width=int(depths.max()) + 1, visible_pairs=int(ancestors.sum()))
