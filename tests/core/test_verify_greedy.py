"""Greedy verification against a slow reference that walks each row's tree in Python."""

import itertools

import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from specplug.ragged import ragged_trees
from specplug.tree import TreeShape, chain_trees, fill_shape, roots_only
from specplug.verify import verify_greedy

from .test_tree import parent_lists


def slow(tokens, parents, valid, targets):
    """(accepted tokens, bonus) of one row: follow the first child that equals the target's token; deepest wins."""

    def walk(node):
        best = ([], targets[node])
        for child, parent in enumerate(parents):
            if child and parent == node and valid[child] and tokens[child] == targets[node]:
                accepted, bonus = walk(child)
                if len(accepted) + 1 > len(best[0]):
                    best = ([tokens[child], *accepted], bonus)
        return best

    return walk(0)


def check_row(verdict, trees, row, tokens, parents, valid, targets):
    accepted, bonus = slow(tokens, parents, valid, targets)
    taken = int(verdict.num_accepted[row])
    assert taken == len(accepted)
    assert int(verdict.bonus[row]) == bonus
    path = verdict.path[row].tolist()
    assert path[0] == 0
    assert [tokens[node] for node in path[1 : taken + 1]] == accepted
    assert all(parents[b] == a for a, b in itertools.pairwise(path[: taken + 1]))
    assert set(path[taken:]) == {path[taken]}
    new = verdict.tokens(trees)[row].tolist()
    assert new[: taken + 1] == [*accepted, bonus]
    assert set(new[taken:]) == {bonus}


def by_prefix(tokens, parents, targets):
    """`targets` as a model gives them: nodes with equal paths of tokens have equal ones, the first such node's."""
    paths, known = [], {}
    for node, parent in enumerate(parents):
        paths.append(() if parent < 0 or node == 0 else (*paths[parent], tokens[node]))
    return [known.setdefault(path, target) for path, target in zip(paths, targets, strict=True)]


rows_of_trees = st.lists(
    parent_lists(8).flatmap(
        lambda parents: st.tuples(
            st.just(parents),
            st.lists(st.integers(0, 2), min_size=8, max_size=8),  # few tokens: duplicates among siblings are common
            st.lists(st.integers(0, 2), min_size=8, max_size=8),
            st.lists(st.booleans(), min_size=8, max_size=8),
        )
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=200, deadline=None)
@given(rows_of_trees)
def test_ragged_trees_with_padding_and_duplicates(rows):
    n = 8
    parents = [[*shape, *[0] * (n - len(shape))] for shape, *_ in rows]
    tokens = [tokens for _, tokens, _, _ in rows]
    targets = [by_prefix(t, p, targets) for t, p, (_, _, targets, _) in zip(tokens, parents, rows, strict=True)]
    valid = [[i == 0 or (i < len(shape) and real[i]) for i in range(n)] for shape, _, _, real in rows]
    trees = ragged_trees(torch.tensor(tokens), torch.tensor(parents), torch.tensor(valid))
    verdict = verify_greedy(trees, torch.tensor(targets))
    for row in range(len(rows)):
        check_row(verdict, trees, row, tokens[row], parents[row], valid[row], targets[row])


@settings(max_examples=200, deadline=None)
@given(
    parent_lists(8),
    st.lists(st.tuples(*[st.lists(st.integers(0, 2), min_size=8, max_size=8)] * 2), min_size=1, max_size=3),
    st.booleans(),
)
@example(
    [-1, 0, 0, 2, 1], [([0] * 8, [0, 0, 0, 0, 1, 0, 0, 0])], False
)  # equal siblings whose children stand crosswise
def test_one_shape_for_all_rows(parents, rows, padded):
    shape = TreeShape.from_parents(parents)
    n = shape.num_nodes
    tokens = [tokens[:n] for tokens, _ in rows]
    targets = [by_prefix(t, shape.parents, targets[:n]) for t, (_, targets) in zip(tokens, rows, strict=True)]
    valid = [[not padded or i == 0 or (tokens[i] + i) % 3 > 0 for i in range(n)] for tokens, _ in rows]
    trees = fill_shape(shape, torch.tensor(tokens), valid=torch.tensor(valid) if padded else None)
    verdict = verify_greedy(trees, torch.tensor(targets))
    for row in range(len(rows)):
        check_row(verdict, trees, row, tokens[row], list(shape.parents), valid[row], targets[row])


def test_a_root_alone_yields_the_targets_token():
    trees = roots_only(torch.tensor([3, 4]))
    verdict = verify_greedy(trees, torch.tensor([[7], [8]]))
    assert verdict.tokens(trees).tolist() == [[7], [8]]
    assert verdict.num_accepted.tolist() == [0, 0]


def test_a_padding_root_does_not_break_the_row():
    """Rows that sit out a round may be all padding; they still get the target's token."""
    trees = chain_trees(torch.tensor([3]), torch.tensor([[7]]), torch.tensor([-1]))
    verdict = verify_greedy(trees, torch.tensor([[7, 9]]))
    assert (verdict.num_accepted.tolist(), verdict.bonus.tolist()) == ([0], [7])


def test_nothing_handed_in_is_changed():
    trees = chain_trees(torch.tensor([3]), torch.tensor([[7, 8]]), torch.tensor([2]))
    before = [trees.tokens.clone(), trees.parents.clone(), trees.valid.clone(), trees.depths.clone()]
    verify_greedy(trees, torch.tensor([[7, 8, 9]]))
    assert all(map(torch.equal, before, [trees.tokens, trees.parents, trees.valid, trees.depths]))
