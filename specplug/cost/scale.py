"""A round's scale: what a cost model is asked of before it runs, or was told of behind it."""

from __future__ import annotations

from typing import NamedTuple

from specplug.cost.base import Load
from specplug.tree import TreeShape


class Scale(NamedTuple):
    """One round to be priced: who drafts what for how many rows, and what they read."""

    drafter: str
    rows: int
    nodes: int  # that the target verifies, over all rows, padding included
    depth: int  # forwards of the draft, one after another
    context: int  # KV entries of all rows
    budget: int | None = None  # most of a row's that the draft reads

    @property
    def target(self) -> Load:
        return Load(self.rows, self.nodes, self.context)

    @property
    def draft(self) -> Load:
        """One level of the draft."""
        return self.level(self.widest(self.nodes, self.depth))

    def widest(self, nodes: int, depth: int) -> int:
        """Tokens of one level where there are so many nodes and levels."""
        return max(self.rows, (nodes - self.rows) // max(1, depth))

    def level(self, tokens: int) -> Load:
        """One of so many tokens."""
        seen = self.context if self.budget is None else min(self.context, self.rows * self.budget)
        return Load(self.rows, tokens, seen)

    @property
    def kind(self) -> tuple[str, int, int]:
        """What rounds are alike: the drafter, nodes a row, depth."""
        return self.drafter, round(self.nodes / self.rows), self.depth


def scale(drafter: str, rows: int, shape: TreeShape, context: int, budget: int | None = None) -> Scale:
    """A round in which every row gets `shape`."""
    return Scale(drafter, rows, rows * shape.num_nodes, shape.depth, context, budget)
