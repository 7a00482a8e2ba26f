"""Tree builders: which tree to fill, given what is known of acceptance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from specplug.tree import TreeShape

# P(the child of rank k is the accepted one | its parent was), Sequoia's published vector (arXiv 2402.12374), smoothed:
# what a builder starts from before anything was measured.
DEFAULT_ACCEPTANCE = (0.6342, 0.1079, 0.0570, 0.0225, 0.0195, 0.0150, 0.0060, 0.0060)


class TreeBuilder:
    """Base of the tree builders: one small frozen dataclass each."""

    grown: ClassVar[bool] = False  # whether drafters that can are to grow a tree of each row's own within what is built

    def build(self, acceptance: Sequence[float] = DEFAULT_ACCEPTANCE) -> TreeShape:
        """The shape to fill when the child of rank k is the accepted one with probability `acceptance[k]`."""
        raise NotImplementedError
