"""Tree builders. One method a file."""

from specplug.trees.base import DEFAULT_ACCEPTANCE, TreeBuilder
from specplug.trees.chain import Chain
from specplug.trees.dynamic import Dynamic
from specplug.trees.kary import KAry
from specplug.trees.sequoia import Sequoia, best_tree, expected_tokens, non_rising

__all__ = [
    "DEFAULT_ACCEPTANCE",
    "Chain",
    "Dynamic",
    "KAry",
    "Sequoia",
    "TreeBuilder",
    "best_tree",
    "expected_tokens",
    "non_rising",
]
