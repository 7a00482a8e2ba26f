"""Streaks: a text that has begun to agree with a lookup is expected to go on, and the planner's chains grow at once."""

from types import SimpleNamespace

import pytest
import torch

from specplug.controllers import Arm, Goodput, Memory
from specplug.controllers.base import Plan
from specplug.controllers.beliefs import Beliefs
from specplug.drafters import NoDraft, PromptLookup
from specplug.outcome import outcome_of
from specplug.streaks import Streaks
from specplug.tree import ROOT_ONLY
from specplug.trees import Chain, Sequoia

from .test_controllers import HOST, World, batch_of, finished_round


def chains(accepted, depth=4, proposed=None):
    """A round with chains of `depth`, of which row b had `proposed[b]` tokens."""
    nodes = torch.tensor(proposed if proposed is not None else [depth] * len(accepted)) + 1
    valid = None if proposed is None else torch.arange(depth + 1) < nodes[:, None]
    shape = Chain(depth).build()
    plan = Plan(Arm("chain", PromptLookup(), shape), shape)
    paths = [list(range(count + 1)) for count in accepted]
    finished = finished_round(plan, batch_of(len(accepted), 100, 50), paths, [len(path) for path in paths], 1.0)
    finished.trees.valid = valid
    return outcome_of(finished)


def test_a_streak_begins_with_a_proposal_that_was_accepted_whole():
    streaks = Streaks()
    streaks.observe(chains([4, 3, 0]), 1.0)
    assert streaks.rows == {0}
    streaks.observe(chains([3, 2, 0], proposed=[4, 2, 0]), 1.0)  # a row may propose less, and one proposes nothing
    assert streaks.rows == {1}
    assert streaks.hold([1]) and not streaks.hold([1, 2])
    streaks.forget([1])
    assert not streaks.hold([1])


def test_its_rate_is_that_of_rows_that_were_in_one():
    streaks = Streaks(weight=0.0)
    streaks.observe(chains([4, 0]), 1.0)
    assert (streaks.tried, streaks.taken) == (0, 0)  # row 0 was in none yet
    streaks.observe(chains([2, 4]), 1.0)
    assert (streaks.tried, streaks.taken) == (3, 2)  # two taken and one refused; row 1 does not count
    streaks.observe(chains([0, 3], proposed=[0, 3]), 0.5)
    assert (streaks.tried, streaks.taken) == (1.5 + 4, 1.0 + 3)  # what it did not propose has failed
    assert streaks.tokens(0.1, 2) == pytest.approx(1 + 8 / 11 + (8 / 11) ** 2)


def test_what_is_not_known_is_taken_from_all_rows():
    assert Streaks().tokens(0.5, 3) == pytest.approx(1.875)
    certain = Streaks(tried=1e9, taken=1e9)
    assert certain.tokens(0.5, 3) == pytest.approx(4.0)


def test_streaks_are_of_chains_only():
    known, batch = {}, batch_of(1, 100, 50)
    for shape, expected in ((Sequoia(8, 4).build(), set()), (Chain(3).build(), {0})):
        arm = Arm("any", PromptLookup(), shape)
        seen, plan = Beliefs(known, [arm]).of(arm, sampling=False), Plan(arm, shape)
        path = list(range(shape.depth + 1))
        Beliefs(known, [arm]).follow(outcome_of(finished_round(plan, batch, [path], [len(path)], 1.0)))
        assert seen.streaks.rows == expected
    seen.forget([0])
    assert not seen.streaks.rows


def sizes(path_of, rounds, rows=1, node=0.05):
    """Draft tokens of each round's plan, of a lookup of which `path_of(round, size)` tokens are accepted in each row."""
    lookup = PromptLookup()
    arms = [Arm("lookup", lookup, Chain(10).build()), Arm("none", NoDraft(), ROOT_ONLY)]
    goodput, found, world = Goodput().open(arms, HOST, Memory()), [], World(node=node)
    for number in range(rounds):
        batch = batch_of(rows, 100 + number, 500)
        plan = goodput.plan(batch)
        size = plan.shape.size
        found.append(size)
        paths = [list(range(taken + 1)) for taken in path_of(number, size)]
        seconds = world.seconds(plan, rows)
        goodput.observe(finished_round(plan, batch, paths, [len(path) for path in paths], seconds))
    return found


def test_chains_are_as_long_as_can_be_within_a_streak_and_short_behind_it():
    """One token of two or more is accepted, and in three rounds of twenty whatever is proposed."""

    def path(number, size):
        return [size if number % 20 >= 17 else max(0, min(size - 1, 1))]

    late = sizes(path, 400, node=0.1)[200:]
    begun = [late[place + 1] for place in range(199) if place % 20 == 17 and late[place]]
    calm = [late[place] for place in range(200) if place % 20 in (4, 8, 12) and late[place]]
    assert begun and set(begun) == {10}  # the very next round, not at the next look
    assert calm and max(calm) < 6


def test_one_row_s_streak_is_not_the_batch_s():
    alone = sizes(lambda number, size: [size, 0, 0, 0], 120, rows=4)
    assert max(alone[20:]) < 10


def test_a_round_of_another_drafter_ends_it():
    memory = Memory()
    lookup, other = PromptLookup(), PromptLookup(ngram=2)
    chain = Chain(10).build()
    arms = [Arm("lookup", lookup, chain), Arm("other", other, chain), Arm("none", NoDraft(), ROOT_ONLY)]
    goodput, batch = Goodput().open(arms, HOST, memory), batch_of(1, 100, 500)
    goodput.plan(batch)
    seen = memory.of(HOST, arms).acceptance
    for arm, shape, within in ((arms[0], chain, True), (arms[2], ROOT_ONLY, False)):
        plan = SimpleNamespace(arm=arm, shape=shape, sizes=None, predicted=None)
        goodput.observe(finished_round(plan, batch, [list(range(shape.size + 1))], [shape.size + 1], 1.0))
        goodput.forget([])  # reads what happened
        assert bool(seen["lookup", False].streaks.rows) == within
