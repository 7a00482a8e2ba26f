"""`chain`: one path of draft tokens (Leviathan et al., arXiv 2211.17192)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from specplug.errors import OptionError
from specplug.tree import TreeShape, chain_shape
from specplug.trees.base import DEFAULT_ACCEPTANCE, TreeBuilder


@dataclass(frozen=True, slots=True)
class Chain(TreeBuilder):
    """`length` draft tokens, one after another (gamma)."""

    length: int = 4

    def __post_init__(self) -> None:
        if self.length < 0:
            raise OptionError(f"chain: length={self.length} must not be negative.")

    def build(self, acceptance: Sequence[float] = DEFAULT_ACCEPTANCE) -> TreeShape:
        return chain_shape(self.length)
