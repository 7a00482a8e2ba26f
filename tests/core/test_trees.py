import itertools
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specplug.errors import OptionError
from specplug.tree import TreeShape
from specplug.trees import DEFAULT_ACCEPTANCE, Chain, KAry, Sequoia, best_tree, expected_tokens, non_rising

# Sequoia's published example (arXiv 2402.12374): P(the child of rank k is the accepted one | its parent was)
PUBLISHED = tuple(
    float(text)
    for text in [
        ".6342",
        ".1079",
        ".0570",
        ".0225",
        ".0195",
        ".0150",
        ".0045",
        ".0030",
        ".0120",
        ".0045",
        ".0075",
        ".0045",
        ".0060",
        ".0030",
        ".0015",
        ".0030",
        ".0015",
        ".0030",
        "0",
        ".0030",
        ".0030",
        ".0030",
        "0",
        ".0015",
        "0",
        ".0015",
        "0",
        "0",
        "0",
        ".0015",
        ".0015",
        ".0015",
    ]
)


def oracle(acceptance, nodes, levels):
    """G(m, l) by the paper's dynamic programme: T[m][l][b], the root and its first b children."""
    p = (0.0, *acceptance)

    @cache
    def best(m, level):
        return max(table(m, level, b) for b in range(min(len(p), m)))

    @cache
    def table(m, level, b):
        if b == 0:
            return 1.0 if m == 1 else float("-inf")
        if level == 1 or m < b + 1:
            return float("-inf")
        return max(table(y, level, b - 1) + p[b] * best(m - y, level - 1) for y in range(b, m))

    # a tree need not use all its nodes when the depth leaves no room for them
    return max(best(k, levels) for k in range(1, nodes + 1))


GOLDEN = [(8, 5, 2.6980), (16, 8, 3.1303), (32, 10, 3.5007), (64, 10, 3.8523)]


@pytest.mark.parametrize(("nodes", "levels", "golden"), GOLDEN)
def test_golden_values(nodes, levels, golden):
    heap = expected_tokens(best_tree(non_rising(PUBLISHED), nodes - 1, levels - 1), PUBLISHED)
    assert golden - 0.018 <= heap <= golden + 2e-4
    if nodes <= 32:  # the oracle is slow
        assert oracle(PUBLISHED, nodes, levels) == pytest.approx(golden, abs=2e-4)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(0.001, 1), min_size=1, max_size=5).map(lambda v: tuple(x / sum(v) for x in sorted(v)[::-1])),
    st.integers(1, 10),
    st.integers(1, 5),
)
def test_the_heap_is_optimal_for_falling_probabilities(acceptance, nodes, levels):
    shape = best_tree(acceptance, nodes - 1, levels - 1)
    assert shape.num_nodes <= nodes
    assert shape.depth <= levels - 1
    assert expected_tokens(shape, acceptance) == pytest.approx(oracle(acceptance, nodes, levels), abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.floats(0.01, 1), min_size=1, max_size=6).map(lambda v: tuple(x / sum(v) for x in sorted(v)[::-1])),
    st.integers(1, 20),
    st.integers(1, 6),
)
def test_trees_are_nested_by_priority(acceptance, size, depth):
    """The first k nodes by priority are a best tree of k draft tokens."""
    shape = best_tree(acceptance, size, depth)
    for k in range(shape.num_nodes):
        kept = [node for node in range(shape.num_nodes) if shape.priority[node] <= k]
        place = {node: i for i, node in enumerate(kept)}
        nested = TreeShape(tuple(-1 if node == 0 else place[shape.parents[node]] for node in kept))
        alone = best_tree(acceptance, k, depth)
        assert expected_tokens(nested, acceptance) == pytest.approx(expected_tokens(alone, acceptance), abs=1e-12)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_non_rising_is_the_least_squares_projection(values):
    fitted = non_rising(values)
    assert len(fitted) == len(values)
    assert all(a >= b - 1e-12 for a, b in itertools.pairwise(fitted))
    assert sum(fitted) == pytest.approx(sum(values), abs=1e-9)
    # projection on a convex cone: the residual is orthogonal to the fit, and points away from every falling step
    residual = [v - f for v, f in zip(values, fitted, strict=True)]
    assert sum(r * f for r, f in zip(residual, fitted, strict=True)) == pytest.approx(0, abs=1e-9)
    assert all(sum(residual[:k]) <= 1e-9 for k in range(1, len(values) + 1))
    assert non_rising(fitted) == pytest.approx(fitted)


def test_expected_tokens_of_a_chain_is_the_geometric_sum():
    a, gamma = 0.8, 5
    assert expected_tokens(Chain(gamma).build(), (a,)) == pytest.approx((1 - a ** (gamma + 1)) / (1 - a))


def test_chain_and_kary_shapes():
    assert Chain(3).build().parents == (-1, 0, 1, 2)
    assert Chain(0).build().size == 0
    assert KAry(2, 2).build().parents == (-1, 0, 0, 1, 1, 2, 2)
    assert KAry(1, 3).build() == Chain(3).build()
    assert KAry(3, 0).build().size == 0


def test_sequoia_has_the_size_and_depth_it_was_asked_for():
    shape = Sequoia(16, 6).build()
    assert (shape.size, shape.depth <= 6) == (16, True)
    assert Sequoia(5, 1).build().parents == (-1, 0, 0, 0, 0, 0)
    assert Sequoia(0, 3).build().size == 0
    assert Sequoia(3, 0).build().size == 0
    assert max(Sequoia(100, 1).build().parents) == 0
    assert Sequoia(100, 1).build().size == len(DEFAULT_ACCEPTANCE)  # no more ranks are known


def test_the_default_acceptance_does_not_rise():
    assert list(DEFAULT_ACCEPTANCE) == sorted(DEFAULT_ACCEPTANCE, reverse=True)


@pytest.mark.parametrize(
    "make", [lambda: Chain(-1), lambda: Sequoia(-1), lambda: Sequoia(4, -1), lambda: KAry(0), lambda: KAry(2, -1)]
)
def test_impossible_sizes_are_refused(make):
    with pytest.raises(OptionError):
        make()
