"""What rounds teach is written down while they run, and learnt from when a planner next looks."""

import random
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from specplug.controllers import Arm, Goodput, Memory
from specplug.controllers.base import Plan
from specplug.controllers.ledger import Entry, _likeness
from specplug.drafters import NoDraft, PromptLookup
from specplug.outcome import Outcome, outcome_of
from specplug.tree import ROOT_ONLY
from specplug.trees import Chain, Sequoia

from .test_controllers import GOOD_MODEL, HOST, WORLDS, World, batch_of, finished_round


def rounds(world, count, goodput, seed=0, after=lambda _: None):
    """Plans of so many rounds of one row; `after` is told of the controller behind each of them."""
    rng, plans = random.Random(seed), []
    for number in range(count):
        batch = batch_of(1, 100 + number, 500)
        plan = goodput.plan(batch)
        path = world.path(plan, number, rng)
        goodput.observe(finished_round(plan, batch, [path], [len(path)], world.seconds(plan, 1)))
        after(goodput)
        plans.append(plan)
    return plans


def learnt(memory):
    found = memory.of(HOST, [])
    seen = {key: (list(a.tried), list(a.taken), a.proposing) for key, a in found.acceptance.items() if a.samples}
    factors = {key: factor.value for key, factor in found.cost.drafters.items()}
    return seen, factors, {key: place.value for key, place in found.cost.situations.items()}, found.purse.spare


def flat(values):
    for value in values:
        yield from flat(value) if isinstance(value, list | tuple) else [value]


@pytest.mark.parametrize("name", ["good model", "good lookup", "mildly bad"])
def test_it_is_the_same_whenever_it_is_learnt(name):
    """Learning at once and learning late lead to the same plans and the same beliefs."""
    late, once, world = Memory(), Memory(), WORLDS[name]
    planner = Goodput(thought=1e9).open(world.arms(), HOST, late)
    plans = rounds(world, 60, planner)
    posted = rounds(world, 60, Goodput(thought=1e9).open(world.arms(), HOST, once), after=lambda g: g._ledger.post())
    assert [(p.arm.label, p.shape) for p in plans] == [(p.arm.label, p.shape) for p in posted]
    planner._ledger.post()
    (seen, *late_numbers), (seen_at_once, *numbers_at_once) = learnt(late), learnt(once)
    assert seen and seen.keys() == seen_at_once.keys()
    for key, counts in seen.items():  # but for rounding: rounds that are alike are counted together
        assert list(flat(counts)) == pytest.approx(list(flat(seen_at_once[key])), rel=1e-9)
    assert late_numbers == numbers_at_once


def test_nothing_of_a_generation_is_lost_at_its_end():
    """Rounds since the last look are learnt from when their rows leave, whose acceptance is forgotten with them."""
    memory = Memory()
    goodput = Goodput().open(GOOD_MODEL.arms(), HOST, memory)
    rounds(GOOD_MODEL, 40, goodput)
    before = learnt(memory)
    assert goodput._behind or goodput._ledger._entries
    goodput.forget([0])
    assert goodput._calm is None and not goodput._behind and not goodput._ledger._entries and learnt(memory) != before
    assert all(not seen.rows.counts for seen in memory.of(HOST, []).acceptance.values())


def test_an_outcome_holds_no_tensors():
    """A round's tensors, laws over the vocabulary among them, must not live until the next look."""
    shape = Sequoia(8, 4).build()
    plan = Plan(Arm("tree", PromptLookup(), shape), shape)
    finished = finished_round(plan, batch_of(2, 100, 50), [[0, 1], [0]], [2, 1], 0.5)
    finished.trees.valid = torch.ones(2, shape.num_nodes, dtype=torch.bool)
    outcome = outcome_of(finished)
    assert not any(isinstance(value, torch.Tensor) for value in outcome)
    assert outcome == Outcome(plan, (0, 1), 100, False, 9, [9, 9], [1, 0], [[0], [0]], [2, 1], 0.5)


def test_ranks_are_places_among_siblings():
    shape = Sequoia(8, 4).build()
    second = [node for node, parent in enumerate(shape.parents) if parent == 0][1]
    plan = Plan(Arm("tree", PromptLookup(), shape), shape)
    finished = finished_round(plan, batch_of(1, 100, 50), [[0, second]], [2], 0.5)
    assert outcome_of(finished).ranks == [[1]]
    grown = replace(plan, arm=replace(plan.arm, grown=True))  # its best child stands first, wherever it is
    assert outcome_of(finished_round(grown, batch_of(1, 100, 50), [[0, second]], [2], 0.5)).ranks is None


def counted(goodput):
    """Looks, and reviews that left the drafter as it was."""
    counts = SimpleNamespace(looks=0, reviews=0)
    look, review = goodput._look, goodput._reviewed

    def looked(*arguments):
        counts.looks += 1
        return look(*arguments)

    def reviewed(*arguments):
        stands = review(*arguments)
        counts.reviews += stands
        return stands

    goodput._look, goodput._reviewed = looked, reviewed
    return counts


def test_bad_luck_changes_a_tree_without_looking_at_every_drafter():
    """A lookup without a rival, right for 20 tokens and then wrong for some: shorter chains, and no more looks for that."""
    arms = [Arm("lookup", PromptLookup(), Chain(10).build()), Arm("none", NoDraft(), ROOT_ONLY)]
    goodput, world, sizes = Goodput(interval=10**6).open(arms, HOST, Memory()), World(node=0.2), []
    for number in range(80):
        batch = batch_of(1, 128 + number % 90, 500)
        plan = goodput.plan(batch)
        taken = plan.shape.size if number < 60 else min(1, plan.shape.size)
        goodput.observe(finished_round(plan, batch, [list(range(taken + 1))], [taken + 1], world.seconds(plan, 1)))
        if number == 59:
            counts, goodput._standing.until = counted(goodput), 10**6
        sizes.append(plan.shape.size)
    assert sizes[59] == 10 and sizes[-1] < 8
    assert counts.reviews > 2
    assert not counts.looks


def test_what_came_second_takes_over_once_the_first_disappoints():
    """Two lookups of which one is right, then the other: a review finds the rival better, and everything is looked at."""
    good, other = PromptLookup(), PromptLookup(ngram=2)
    arms = [Arm("a", good, Chain(6).build()), Arm("b", other, Chain(6).build()), Arm("none", NoDraft(), ROOT_ONLY)]
    goodput, labels = Goodput(interval=10**6).open(arms, HOST, Memory()), []
    for number in range(200):
        batch = batch_of(1, 128 + number % 90, 500)
        plan = goodput.plan(batch)
        right = plan.arm.label == ("a" if number < 60 else "b")
        taken = plan.shape.size if right else 0
        goodput.observe(finished_round(plan, batch, [list(range(taken + 1))], [taken + 1], 1.0))
        labels.append(plan.arm.label)
        if number == 59:
            goodput._standing.until = 10**6
    assert labels[50:60].count("a") > 7
    assert "a" not in labels[-20:]


OTHER = PromptLookup(ngram=2)
CHAIN = Chain(4).build()
LIKE = Entry(
    outcome_of(finished_round(Plan(Arm("a", OTHER, CHAIN), CHAIN), batch_of(2, 130, 50), [[0, 1], [0]], [2, 1], 0.5)),
    situation="here",
    best=True,
    caught_up=True,
    settling=False,
    unread=0,
    draft_seconds=0.1,
)


@pytest.mark.parametrize(
    "other",
    [
        LIKE._replace(best=False),
        LIKE._replace(caught_up=False),
        LIKE._replace(settling=True),
        LIKE._replace(unread=100),
        LIKE._replace(situation="there"),
        LIKE._replace(outcome=LIKE.outcome._replace(context=200)),
        LIKE._replace(outcome=LIKE.outcome._replace(rows=(0, 2))),
        LIKE._replace(outcome=LIKE.outcome._replace(sampling=True)),
        LIKE._replace(outcome=LIKE.outcome._replace(nodes=1)),
        LIKE._replace(outcome=LIKE.outcome._replace(plan=replace(LIKE.outcome.plan, shape=Chain(3).build()))),
        LIKE._replace(outcome=LIKE.outcome._replace(plan=replace(LIKE.outcome.plan, sizes=(1, 4)))),
        LIKE._replace(outcome=LIKE.outcome._replace(plan=replace(LIKE.outcome.plan, arm=Arm("b", OTHER, CHAIN)))),
    ],
)
def test_rounds_that_are_not_alike_are_learnt_from_apart(other):
    assert _likeness(other) != _likeness(LIKE)


def test_rounds_that_differ_in_their_luck_are_learnt_from_together(monkeypatch):
    goodput = Goodput().open([LIKE.outcome.plan.arm, *GOOD_MODEL.arms()], HOST, Memory())
    told = []
    monkeypatch.setattr(goodput._prices, "observe", lambda outcomes, settling: told.append(len(outcomes)))
    lucky = LIKE.outcome._replace(context=150, accepted=[4, 4], counts=[5, 5], seconds=0.3)
    for outcome in (LIKE.outcome, lucky, lucky._replace(context=200), lucky):
        goodput._ledger.enter(LIKE._replace(outcome=outcome))
    goodput._ledger.post()
    assert told == [2, 1, 1]


def test_contexts_are_priced_in_steps(monkeypatch):
    """What a plain round takes is not worked out anew for every few tokens."""
    goodput = Goodput().open(GOOD_MODEL.arms(), HOST, Memory())
    prices, asked = goodput._prices, []
    monkeypatch.setattr(type(prices._cost), "plain", lambda _, work, situation: asked.append(work.context) or 1.0)
    for context in (130, 150, 191, 192, 130):
        prices.look(1, context, "here")
        assert prices.plain == 1.0
    assert asked == [160, 224, 160]
