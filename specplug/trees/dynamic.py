"""`dynamic`: every row's tree of its own, grown at run time from the draft's probabilities (EAGLE-2, arXiv 2406.16858)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from specplug.errors import OptionError
from specplug.tree import TreeShape
from specplug.trees.base import DEFAULT_ACCEPTANCE, TreeBuilder
from specplug.trees.sequoia import best_tree, non_rising


@dataclass(frozen=True, slots=True)
class Dynamic(TreeBuilder):
    """`size` draft tokens, at most `depth` of them on a path; `size // (depth - 1)` nodes are expanded a level.

    What is built is the tree for a drafter that does not grow its own, and bounds those of one that does
    (drafters/grow.py).
    """

    size: int = 16
    depth: int = 5
    grown: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.size < 1 or self.depth < 1 or self.depth > self.size:
            raise OptionError(f"dynamic: needs 1 <= depth <= size, got size={self.size} and depth={self.depth}.")

    def build(self, acceptance: Sequence[float] = DEFAULT_ACCEPTANCE) -> TreeShape:
        shape = best_tree(non_rising(acceptance), self.size, self.depth)
        if (shape.size, shape.depth) == (self.size, self.depth):
            return shape
        return best_tree(
            [1.0, *[0.9] * (self.size - 1)], self.size, self.depth
        )  # as deep and as large as was asked for
