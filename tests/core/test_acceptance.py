"""What is learnt of acceptance from rounds whose true probabilities are known."""

import random
from types import SimpleNamespace

import pytest

from specplug.acceptance import Acceptance
from specplug.controllers import Arm
from specplug.controllers.base import Plan
from specplug.drafters import ModelDraft, PromptLookup
from specplug.outcome import outcome_of
from specplug.trees import Chain, Sequoia

from .test_controllers import World, batch_of, finished_round

LOOKUP = Arm("lookup", PromptLookup(), Chain(10).build())
MODEL = Arm("model", ModelDraft("m"), Sequoia(16, 6).build())


def learn(acceptance, world, arm, shape, rounds, rows=4, seed=0, sizes=None):
    rng = random.Random(seed)
    for _ in range(rounds):
        plan = Plan(arm, shape, sizes)
        paths = [world.path(plan, 0, rng) for _ in range(rows)]
        if sizes is not None:
            paths = [[n for n in path if shape.priority[n] <= size] for path, size in zip(paths, sizes, strict=True)]
        acceptance.observe(
            outcome_of(finished_round(plan, batch_of(rows, 10, 100), paths, [len(p) for p in paths], 1.0))
        )


@pytest.mark.parametrize("chance", [0.05, 0.5, 0.9])
def test_a_chain_shows_the_first_childs_probability(chance):
    acceptance = Acceptance()
    learn(acceptance, World(lookup=chance), LOOKUP, Chain(4).build(), 300)
    assert acceptance.first()[0] == pytest.approx(chance, abs=0.1)
    # depths that nobody reached are as the others, more or less
    assert acceptance.first()[9] == pytest.approx(chance, abs=0.2)


def test_a_tree_shows_the_later_children():
    acceptance = Acceptance()
    learn(acceptance, World(model=0.5, sibling=0.6), MODEL, Sequoia(16, 3).build(), 400)
    assert acceptance.first()[0] == pytest.approx(0.5, abs=0.08)
    shares = acceptance.others()
    assert shares[0] == pytest.approx(0.3, abs=0.08)  # rank 1 of World is taken with sibling / 2
    assert shares == sorted(shares, reverse=True)


def test_depths_that_differ_are_told_apart():
    """An n-gram's continuation that begins right goes on right."""

    acceptance = Acceptance()
    rng = random.Random(1)
    shape = Chain(3).build()
    for _ in range(300):
        paths = []
        for _ in range(4):
            path = [0]
            for node, chance in ((1, 0.3), (2, 0.95), (3, 0.95)):
                if rng.random() > chance:
                    break
                path.append(node)
            paths.append(path)
        plan = Plan(LOOKUP, shape)
        acceptance.observe(outcome_of(finished_round(plan, batch_of(4, 10, 100), paths, [len(p) for p in paths], 1.0)))
    first = acceptance.first()
    assert first[0] == pytest.approx(0.3, abs=0.08) and first[1] > 0.85


def test_a_row_of_harder_text_is_known():
    acceptance, rng, shape = Acceptance(), random.Random(0), Chain(4).build()
    easy, hard = World(lookup=0.9), World(lookup=0.2)
    for _ in range(100):
        plan = Plan(LOOKUP, shape)
        paths = [easy.path(plan, 0, rng), hard.path(plan, 0, rng)]
        acceptance.observe(outcome_of(finished_round(plan, batch_of(2, 10, 100), paths, [len(p) for p in paths], 1.0)))
    assert acceptance.of_row(0) > 1.05 and acceptance.of_row(1) < 0.7
    assert acceptance.of_row("a stranger") == 1.0
    acceptance.forget([1])
    assert acceptance.of_row(1) == 1.0


def test_rows_that_got_less_are_judged_by_what_they_got():
    acceptance = Acceptance()
    learn(acceptance, World(model=0.8), MODEL, Sequoia(8, 4).build(), 200, sizes=(8, 2, 1, 0))
    assert acceptance.first()[0] == pytest.approx(0.8, abs=0.08)


def test_old_rounds_fade():
    acceptance = Acceptance()
    learn(acceptance, World(lookup=0.9), LOOKUP, Chain(4).build(), 300, rows=1)
    learn(acceptance, World(lookup=0.1), LOOKUP, Chain(4).build(), 200, rows=1, seed=1)
    assert acceptance.first()[0] < 0.25
    assert acceptance.samples < 70


def test_a_drafter_that_finds_nothing_is_seen_to_propose_nothing():
    acceptance = Acceptance()
    for _ in range(40):
        nothing = finished_round(Plan(LOOKUP, Chain(4).build()), batch_of(1, 10, 100), [[0]], [1], 1.0)
        nothing.trees = SimpleNamespace(num_nodes=1, num_rows=1, shape=Chain(0).build(), children=None, valid=None)
        acceptance.observe(outcome_of(nothing))
    assert acceptance.proposing < 0.05 and acceptance.first()[0] < 0.15


def test_doubt_leans_towards_certainty():
    acceptance = Acceptance(prior=0.4)
    assert acceptance.first()[0] == pytest.approx(0.4)
    assert acceptance.first(doubt=0.5)[0] == pytest.approx(0.7)
    assert acceptance.first(doubt=1.0)[0] == 1.0


@pytest.mark.parametrize("arm", [LOOKUP, MODEL], ids=lambda arm: arm.label)
def test_rounds_that_are_counted_together_count_as_they_do_one_by_one(arm):
    world, rng = World(model=0.6, lookup=0.7), random.Random(0)
    together, one_by_one = Acceptance(), Acceptance()
    for several in (1, 4, 3):
        plan, outcomes = Plan(arm, arm.shape), []
        for _ in range(several):
            paths = [world.path(plan, 0, rng) for _ in range(3)]
            outcomes.append(outcome_of(finished_round(plan, batch_of(3, 10, 100), paths, [len(p) for p in paths], 1.0)))
        together.observe(*outcomes)
        for outcome in outcomes:
            one_by_one.observe(outcome)
    for counts in ("tried", "taken", "missed", "later"):
        assert getattr(together, counts) == pytest.approx(getattr(one_by_one, counts), rel=1e-9)
    assert together.tried[0] > 20 and (arm is LOOKUP or together.later[0] > 0)
    assert (together.rows, together.proposing) == (one_by_one.rows, one_by_one.proposing)
