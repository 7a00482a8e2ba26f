"""`sequoia`: the tree of a given size with the most expected tokens (Sequoia, arXiv 2402.12374, section 3).

A node's worth is the probability that it is accepted: the product of the rank probabilities on its path. With rank
probabilities that do not rise, the best tree of m nodes is the m most probable nodes, and a heap finds them: pop the
most probable node, push its first child and its next sibling. O(N log N), against the paper's O(N^2 * branch * depth)
dynamic programme, which the tests keep as the oracle. The order in which nodes are popped is the tree's priority:
its first k nodes are the best tree of size k.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from specplug.errors import OptionError
from specplug.tree import TreeShape
from specplug.trees.base import DEFAULT_ACCEPTANCE, TreeBuilder


@dataclass(frozen=True, slots=True)
class Sequoia(TreeBuilder):
    """The best tree of `size` draft tokens, at most `depth` of them on a path."""

    size: int = 16
    depth: int = 6

    def __post_init__(self) -> None:
        if self.size < 0 or self.depth < 0:
            raise OptionError(f"sequoia: size={self.size} and depth={self.depth} must not be negative.")

    def build(self, acceptance: Sequence[float] = DEFAULT_ACCEPTANCE) -> TreeShape:
        return best_tree(non_rising(acceptance), self.size, self.depth)


def best_tree(acceptance: Sequence[float], size: int, depth: int) -> TreeShape:
    """The `size` most probable draft nodes within `depth`; `acceptance` by rank must not rise."""
    levels = [acceptance] * max(depth, 1)
    return TreeShape.from_parents([-1, *(parent for parent, _ in grow(levels, size, depth))])


def grow(levels: Sequence[Sequence[float]], size: int, depth: int) -> list[tuple[int, float]]:
    """The `size` most probable draft nodes within `depth`, the most probable first: each one's parent and probability.

    `levels[d][k]`: P(the child of rank k is the accepted one | its parent, at depth d, was), which must not rise with k;
    beyond the last level given it is as there. Parents count the root as 0 and the nodes from 1 in this order.
    """
    ranks_at = [levels[min(level, len(levels) - 1)] for level in range(depth)] + [()]  # by the parent's depth
    reach = [1.0]  # probability of the root and each kept node
    nodes: list[tuple[int, float]] = []
    # (-probability, insertion order, parent, rank, the parent's depth): the order makes ties deterministic
    heap: list[tuple[float, int, int, int, int]] = []
    pushed = 0
    if ranks_at[0]:
        heap.append((-ranks_at[0][0], pushed, 0, 0, 0))
    while heap and len(nodes) < size:
        negative, _, parent, rank, level = heapq.heappop(heap)
        nodes.append((parent, -negative))
        reach.append(-negative)
        if below := ranks_at[level + 1]:
            pushed += 1
            heapq.heappush(heap, (negative * below[0], pushed, len(nodes), 0, level + 1))
        if rank + 1 < len(ranks_at[level]):
            pushed += 1
            heapq.heappush(heap, (-reach[parent] * ranks_at[level][rank + 1], pushed, parent, rank + 1, level))
    return nodes


def expected_tokens(shape: TreeShape, acceptance: Sequence[float]) -> float:
    """Expected tokens a round, the bonus token included: the sum of all nodes' probabilities of being accepted."""
    reach = [1.0]
    seen = [0] * shape.num_nodes
    for parent in shape.parents[1:]:
        rank = seen[parent]
        seen[parent] += 1
        reach.append(reach[parent] * (acceptance[rank] if rank < len(acceptance) else 0.0))
    return sum(reach)


def non_rising(values: Sequence[float]) -> tuple[float, ...]:
    """The nearest sequence, by least squares, that does not rise (isotonic regression by pooling adjacent violators)."""
    pools: list[tuple[float, int]] = []
    for value in values:
        total, count = float(value), 1
        while pools and pools[-1][0] / pools[-1][1] < total / count:
            before, number = pools.pop()
            total, count = total + before, count + number
        pools.append((total, count))
    return tuple(total / count for total, count in pools for _ in range(count))
