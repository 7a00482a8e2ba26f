"""Trees as first children and next siblings, walked depth first: the same nodes as by parents."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from specplug.ragged import ragged_trees
from specplug.tree import TreeShape, fill_shape
from specplug_sglang.links import links


def walked(first_child: list[int], next_sibling: list[int], node: int = 0) -> dict[int, list[int]]:
    """The children of every node, in order, as a walk over the links finds them."""
    found: dict[int, list[int]] = {node: []}
    child = first_child[node]
    while child != -1:
        assert child not in found[node]
        found[node].append(child)
        found |= walked(first_child, next_sibling, child)
        child = next_sibling[child]
    return found


@given(st.lists(st.lists(st.integers(0, 6), min_size=7, max_size=7), min_size=1, max_size=3))
def test_a_walk_over_the_links_finds_the_children_in_order(rows):
    parents = torch.tensor([[-1, *(min(value, i) for i, value in enumerate(row))] for row in rows])
    trees = ragged_trees(torch.zeros_like(parents), parents)
    first, following = links(trees)
    for row, line in enumerate(parents.tolist()):
        expected = {node: [child for child, parent in enumerate(line) if parent == node] for node in range(8)}
        assert walked(first[row].tolist(), following[row].tolist()) == expected


def test_rows_of_one_shape_share_their_links():
    first, following = links(fill_shape(TreeShape((-1, 0, 0, 1)), torch.zeros((2, 4), dtype=torch.int64)))
    assert first.tolist() == [[1, 3, -1, -1]] * 2 and following.tolist() == [[-1, 2, -1, -1]] * 2
