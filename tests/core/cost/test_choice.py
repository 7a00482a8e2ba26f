import itertools
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specplug.cost import Load, Roofline
from specplug.cost.choice import Case, best_chain, best_tree, better, nothing, pays_from, ranks, read, trees
from specplug.cost.presets import device, model_shape
from specplug.tree import TreeShape
from specplug.trees import DEFAULT_ACCEPTANCE
from specplug.trees import best_tree as sequoia_tree
from specplug.trees.sequoia import expected_tokens, non_rising

COST = Roofline(model_shape("llama-3.1-8b"), device("h200"))


@dataclass(frozen=True)
class Line:
    """Seconds that are linear in the load; a draft step costs the same whatever it drafts."""

    fixed: float = 1.0
    token: float = 0.05
    context: float = 0.001
    step: float = 0.1
    around: float = 0.02

    def target(self, load):
        return self.fixed + self.token * load.tokens + self.context * load.context

    def draft(self, drafter, load):
        return self.step

    def overhead(self, rows):
        return self.around * rows


def by_hand(cost, rows, context, kept, rate, gamma):
    """Speed-up of a chain, written out."""
    expected = sum(rate**i for i in range(gamma + 1))
    drafts = sum(cost.draft("self", Load(rows, rows, rows * (min(kept, context) + i))) for i in range(1, gamma + 1))
    verify = cost.target(Load(rows, rows * (gamma + 1), rows * (context + gamma + 1)))
    plain = cost.target(Load(rows, rows, rows * (context + 1)))
    return expected * plain / (drafts + verify + cost.overhead(rows))


@given(
    rows=st.integers(1, 64),
    context=st.integers(1, 100_000),
    rates=st.dictionaries(st.integers(16, 4096), st.floats(0, 1), min_size=1, max_size=3),
    longest=st.integers(1, 8),
    cost=st.sampled_from([COST, Line()]),
)
@settings(deadline=None, max_examples=60)
def test_the_best_chain_is_the_best_of_all(rows, context, rates, longest, cost):
    found = best_chain(Case(cost, "self", rows, context), rates, longest)
    swept = {
        (budget, gamma): by_hand(cost, rows, context, budget, rate, gamma)
        for budget, rate in rates.items()
        for gamma in range(1, longest + 1)
    }
    assert found.speedup == pytest.approx(max(swept.values()))
    assert found.speedup == pytest.approx(swept[found.budget, found.depth])
    assert found.tokens == pytest.approx(sum(rates[found.budget] ** i for i in range(found.depth + 1)))


def every_tree(size):
    """All topologies of up to `size` draft tokens."""
    for nodes in range(1, size + 1):
        for parents in itertools.product(*(range(node) for node in range(1, nodes + 1))):
            yield TreeShape.from_parents([-1, *parents])


ALL = list(dict.fromkeys(every_tree(5)))


@pytest.mark.parametrize("cost", [Line(), Line(step=0.6), Line(token=0.4), Line(step=0.01, token=0.0)])
@pytest.mark.parametrize("vector", [(0.8, 0.1), (0.5, 0.3, 0.15), (0.34, 0.33, 0.32)])
@pytest.mark.parametrize("depth", [1, 2, 5])
def test_the_best_tree_is_the_best_of_all(cost, vector, depth):
    case = Case(cost, "self", 2, 50)
    plain = cost.target(Load(2, 2, 102))

    def speedup(shape):
        nodes = shape.num_nodes
        seconds = shape.depth * cost.step + cost.target(Load(2, 2 * nodes, 2 * (50 + nodes))) + cost.overhead(2)
        return expected_tokens(shape, vector) * plain / seconds

    best = max(speedup(shape) for shape in ALL if shape.depth <= depth)
    found = best_tree(case, {None: vector}, max_size=5, max_depth=depth)
    assert found.speedup == pytest.approx(best)
    assert found.size <= 5
    assert found.depth <= depth
    shape = sequoia_tree(vector, found.size, found.depth)
    assert found.tokens == pytest.approx(expected_tokens(shape, vector))


@pytest.mark.parametrize("vector", [DEFAULT_ACCEPTANCE, (0.9, 0.05), (0.3, 0.3, 0.3)])
def test_what_a_tree_costs_is_counted_on_the_tree_itself(vector):
    for grown in trees(vector, 24, 6):
        shape = sequoia_tree(vector, sum(grown.counts) - 1, len(grown.inner))
        inner = [len(set(shape.parents[start:stop])) for start, stop in shape.levels[1:]]
        assert list(grown.inner) == inner
        assert list(grown.counts) == [stop - start for start, stop in shape.levels]
        assert grown.expected == pytest.approx(expected_tokens(shape, vector))


def test_one_rank_makes_the_tree_a_chain():
    case = Case(COST, "self", 8, 32768)
    chain, tree = best_chain(case, {512: 0.8}), best_tree(case, {512: (0.8,)})
    assert (tree.size, tree.depth) == (chain.size, chain.depth)
    assert tree.speedup == pytest.approx(chain.speedup)


def test_ranks_that_rise_are_smoothed_as_the_builder_does():
    case = Case(COST, "self", 8, 32768)
    rising = (0.6, 0.1, 0.2)
    assert best_tree(case, {512: rising}) == best_tree(case, {512: non_rising(rising)})


def test_not_to_speculate_may_be_best():
    case = Case(COST, "self", 1, 512)  # the budget leaves nothing out
    chain, tree = best_chain(case, {512: 0.8}), best_tree(case, {512: ranks(0.8)})
    assert chain.speedup < 1
    choice = better(nothing(case), chain, tree)
    assert (choice.kind, choice.speedup, choice.size) == ("none", 1.0, 0)


def test_a_larger_budget_is_chosen_where_it_is_worth_it():
    case = Case(COST, "self", 8, 65536)
    assert best_chain(case, {512: 0.8, 2048: 0.8}).budget == 512
    assert best_chain(case, {512: 0.6, 2048: 0.9}).budget == 2048
    assert best_chain(case, {512: 0.5, None: 1.0}).budget == 512


@pytest.mark.parametrize(("budget", "entries"), [(None, 1000), (512, 512), (2048, 1000)])
def test_a_budget_is_at_most_the_context(budget, entries):
    assert read(1000, budget) == entries


@given(rate=st.floats(0, 1))
def test_ranks_of_one_number(rate):
    found = ranks(rate)
    assert list(found) == sorted(found, reverse=True)
    assert sum(found) <= 1 + 1e-9
    assert rate > 0.2 or found[0] <= 0.3
    assert found[0] == pytest.approx(rate) or rate < 0.25


def test_where_it_pays():
    contexts = (128, 256, 512, 1024)
    assert pays_from(lambda context: 1.5 if context >= 700 else 0.9, contexts) == 700
    assert pays_from(lambda context: 1.5, contexts) == 1
    assert pays_from(lambda context: 1.0, contexts) is None
