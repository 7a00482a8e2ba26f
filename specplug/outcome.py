"""What became of a round, in numbers: for those who learn from it later and must not hold on to its tensors."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence
from typing import NamedTuple

from specplug.controllers.base import Plan
from specplug.round import Round
from specplug.tree import TreeBatch
from specplug.verify import Verdict


class Outcome(NamedTuple):
    """One round. Everything by row is in the order of `rows`."""

    plan: Plan
    rows: tuple[Hashable, ...]
    context: int  # most tokens in the cache of any row
    sampling: bool
    nodes: int  # of every row's tree, the root and padding included
    real: Sequence[int] | None  # of them, by row, those that are no padding; None: all
    accepted: Sequence[int]  # draft tokens, by row
    ranks: Sequence[Sequence[int]] | None  # by row, which child of its parent each accepted node is; None: the first
    counts: Sequence[int]  # tokens that were kept, by row, the bonus included
    seconds: float  # of the round, without its planning

    @property
    def num_rows(self) -> int:
        return len(self.rows)

    @property
    def whole(self) -> list[bool]:
        """By row, whether anything was proposed and all of it accepted, where trees are chains."""
        nodes = self.real or [self.nodes] * len(self.accepted)
        return [count > 1 and taken == count - 1 for count, taken in zip(nodes, self.accepted, strict=True)]


def outcome_of(finished: Round) -> Outcome:
    """Reads the round's results, so it waits for the device."""
    plan, batch, trees, verdict = finished.plan, finished.batch, finished.trees, finished.verdict
    return Outcome(
        plan,
        batch.rows,
        batch.context,
        batch.sampling,
        trees.num_nodes,
        None if trees.valid is None else trees.valid.sum(1).tolist(),
        verdict.accepted,
        ranks_of(trees, verdict, plan.arm.grown),
        finished.commit.counts,
        finished.seconds.work,
    )


def ranks_of(trees: TreeBatch, verdict: Verdict, grown: bool) -> list[list[int]] | None:
    """For every row, which child of its parent each node of the path is; None: the first, as all children of a chain are.

    `grown`: at run time, from the draft's own probabilities, with its best child first.
    """
    if grown or trees.num_nodes == 1 or (trees.shape is not None and trees.shape.is_chain):
        return None
    children = trees.children.expand(trees.num_rows, -1, -1).tolist()
    return [
        [
            children[row][parent].index(node) if node in children[row][parent] else 0
            for parent, node in itertools.pairwise(nodes)
        ]
        for row, nodes in enumerate(verdict.path.tolist())
    ]
