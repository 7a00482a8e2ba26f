"""`kary`: every node down to a depth has the same number of children (SpecInfer, arXiv 2305.09781)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from specplug.errors import OptionError
from specplug.tree import TreeShape
from specplug.trees.base import DEFAULT_ACCEPTANCE, TreeBuilder


@dataclass(frozen=True, slots=True)
class KAry(TreeBuilder):
    """`branch` children for every node, `depth` levels of draft tokens."""

    branch: int = 2
    depth: int = 3

    def __post_init__(self) -> None:
        if self.branch < 1 or self.depth < 0:
            raise OptionError(f"kary: branch={self.branch} must be at least 1 and depth={self.depth} not negative.")

    def build(self, acceptance: Sequence[float] = DEFAULT_ACCEPTANCE) -> TreeShape:
        parents = [-1]
        level = [0]
        for _ in range(self.depth):
            start = len(parents)
            parents += [node for node in level for _ in range(self.branch)]
            level = list(range(start, len(parents)))
        return TreeShape(tuple(parents))
