import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specplug.errors import OptionError, ProposalError
from specplug.ragged import ragged_trees
from specplug.tree import (
    DETERMINISTIC,
    ROOT_ONLY,
    TreeShape,
    chain_trees,
    child_counts,
    fill_shape,
    inner_nodes,
    roots_only,
    shape_tensors,
)

CPU = torch.device("cpu")


def parent_lists(largest=12):
    return st.integers(1, largest).flatmap(
        lambda n: st.tuples(*[st.integers(0, i - 1) for i in range(1, n)]).map(lambda tail: [-1, *tail])
    )


@pytest.mark.parametrize(
    ("parents", "priority", "message"),
    [
        ((), (), "needs a root"),
        ((0,), (), "needs a root"),
        ((-1, 1), (), "before its child"),
        ((-1, -1), (), "before its child"),
        ((-1, 0, 1, 0), (), "level by level"),
        ((-1, 0, 1), (0, 2, 1), "better priority than its parent"),
        ((-1, 0, 0), (0, 2, 1), "elder sibling"),
        ((-1, 0, 0), (0, 1), "rank every node"),
        ((-1, 0, 0), (0, 1, 1), "rank every node"),
    ],
)
def test_bad_shapes_are_refused(parents, priority, message):
    with pytest.raises(OptionError, match=message):
        TreeShape(parents, priority)


def test_from_parents_refuses_a_later_parent():
    with pytest.raises(OptionError, match="before its child"):
        TreeShape.from_parents([-1, 2, 0])


@given(parent_lists())
def test_from_parents_sorts_breadth_first_and_keeps_the_order_as_priority(parents):
    shape = TreeShape.from_parents(parents)
    assert shape.num_nodes == len(parents) == shape.size + 1
    node_of = {priority: node for node, priority in enumerate(shape.priority)}  # given index -> node
    for given_index, parent in enumerate(parents[1:], start=1):
        assert shape.parents[node_of[given_index]] == node_of[parent]
    depths = [0]
    for parent in shape.parents[1:]:
        depths.append(depths[parent] + 1)
    assert depths == sorted(depths)
    assert shape.depth == max(depths)
    assert shape.is_chain == (shape.depth == shape.size)


@given(parent_lists())
def test_levels_are_contiguous_and_complete(parents):
    shape = TreeShape.from_parents(parents)
    levels = shape.levels
    assert [node for start, stop in levels for node in range(start, stop)] == list(range(shape.num_nodes))
    depths = shape_tensors(shape, CPU).depths.tolist()
    for level, (start, stop) in enumerate(levels):
        assert set(depths[start:stop]) == {level}


@given(parent_lists(), st.integers(-1, 12))
def test_cut_keeps_the_upper_part_and_its_priorities_in_order(parents, depth):
    shape = TreeShape.from_parents(parents)
    cut = shape.cut(depth)
    assert cut.depth == min(max(depth, 0), shape.depth)
    assert cut.parents == shape.parents[: cut.num_nodes]
    kept = shape.priority[: cut.num_nodes]
    assert sorted(range(len(kept)), key=kept.__getitem__) == sorted(range(len(kept)), key=cut.priority.__getitem__)
    if depth >= shape.depth:
        assert cut is shape


@given(parent_lists())
def test_tensors_tell_the_same_story_as_the_parents(parents):
    shape = TreeShape.from_parents(parents)
    t = shape_tensors(shape, CPU)
    assert t.parents.tolist() == list(shape.parents)
    inner = inner_nodes(shape)
    for node in range(shape.num_nodes):
        line, walk = {node}, node
        while walk:
            walk = shape.parents[walk]
            line.add(walk)
        assert {i for i, is_ancestor in enumerate(t.ancestors[node].tolist()) if is_ancestor} == line
        assert int(t.depths[node]) == len(line) - 1
        children = [i for i, parent in enumerate(shape.parents) if parent == node]
        assert [i for i in t.children[node].tolist() if i >= 0] == children
        assert child_counts(shape)[node] == len(children)
        assert (node in inner) == bool(children)
        for rank, child in enumerate(children):
            assert int(t.ranks[child]) == rank
            assert int(t.laws[child]) == inner.index(node)
    assert int(t.laws[0]) == DETERMINISTIC


def test_equal_shapes_share_their_tensors():
    assert shape_tensors(TreeShape((-1, 0)), CPU) is shape_tensors(TreeShape((-1, 0)), CPU)
    assert TreeShape((-1, 0)) == TreeShape((-1, 0))
    assert hash(TreeShape((-1, 0))) == hash(TreeShape((-1, 0)))
    assert TreeShape((-1, 0, 0, 1, 2), (0, 1, 3, 2, 4)) != TreeShape((-1, 0, 0, 1, 2))


def test_roots_only_is_one_node():
    trees = roots_only(torch.tensor([5, 6]))
    assert (trees.num_rows, trees.num_nodes, trees.max_depth) == (2, 1, 0)
    assert trees.shape == ROOT_ONLY
    assert trees.tokens.tolist() == [[5], [6]]


def test_fill_shape_refuses_a_wrong_number_of_tokens():
    with pytest.raises(ProposalError, match="2 nodes needs as many tokens a row, got 3"):
        fill_shape(TreeShape((-1, 0)), torch.zeros(1, 3, dtype=torch.int64))


def test_chain_trees_mark_what_a_row_does_not_use():
    trees = chain_trees(torch.tensor([1, 2]), torch.tensor([[3, 4], [5, 0]]), torch.tensor([2, 1]))
    assert trees.tokens.tolist() == [[1, 3, 4], [2, 5, 0]]
    assert trees.valid.tolist() == [[True, True, True], [True, True, False]]
    assert trees.shape.is_chain
    assert chain_trees(torch.tensor([1]), torch.tensor([[3]])).valid is None


@settings(max_examples=40)
@given(st.lists(parent_lists(6), min_size=1, max_size=3))
def test_ragged_trees_agree_with_each_rows_own_shape(rows):
    """Every row filled as a shape of its own must give the same depths, ancestors and children."""
    shapes = [TreeShape.from_parents(parents) for parents in rows]
    n = max(shape.num_nodes for shape in shapes)
    parents = torch.tensor([[*shape.parents, *[0] * (n - shape.num_nodes)] for shape in shapes])
    valid = torch.tensor([[i < shape.num_nodes for i in range(n)] for shape in shapes])
    trees = ragged_trees(torch.zeros(len(rows), n, dtype=torch.int64), parents, valid)
    for row, shape in enumerate(shapes):
        t, size = shape_tensors(shape, CPU), shape.num_nodes
        assert torch.equal(trees.depths[row, :size], t.depths)
        assert torch.equal(trees.ancestors[row, :size, :size], t.ancestors)
        for node in range(size):
            listed = [c for c in trees.children[row, node].tolist() if 0 <= c < size]
            assert listed == [c for c in t.children[node].tolist() if c >= 0]
