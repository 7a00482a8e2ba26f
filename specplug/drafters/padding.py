"""Trees of rows that propose unequally much: the shorter ones are filled up with nodes that nobody verifies."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from specplug.ragged import ragged_trees
from specplug.tree import TreeBatch


def padded_trees(
    tokens: Tensor,
    parents: Tensor,
    real: Tensor | None,
    width: int,
    laws: Tensor | None = None,
    law_index: Tensor | None = None,
) -> TreeBatch:
    """`ragged_trees`, in which padding has the root for its parent and stands behind all that is `real` [B, N].

    `width`: most real children of a node; there may be more padding than that, which is left out of the root's children.
    """
    if real is None:
        return ragged_trees(tokens, parents, laws=laws, law_index=law_index, width=width)
    trees = ragged_trees(tokens, parents, real, laws, law_index, width=tokens.shape[1])
    return replace(trees, children=trees.children[:, :, : max(1, width)])
