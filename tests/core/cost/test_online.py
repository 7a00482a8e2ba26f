"""A cost model that corrects itself: against times that are known."""

from __future__ import annotations

import random

import pytest

from specplug.cost.guess import Guess
from specplug.cost.online import OnlineCost, Scale

HERE, THERE = "here", "there"


def truth(work: Scale) -> float:
    """Seconds, of another form than the guess."""
    several = 2e-3 if work.nodes > work.rows else 0.0
    return 7e-3 + several + 4e-4 * work.nodes + 2e-7 * work.context + 1.5e-3 * work.depth


def plain(rows=1, context=1000):
    return Scale("none", rows, rows, 0, context * rows)


def drafted(nodes, depth, rows=1, context=1000, drafter="model"):
    return Scale(drafter, rows, rows * nodes, depth, context * rows)


def shown(works, rounds=20, noise=0.05, situation=HERE, cost=None):
    dice = random.Random(0)
    cost = cost or OnlineCost(Guess(drafts={"model": 0.2}))
    for _ in range(rounds):
        for work in works:
            cost.observe(work, situation, truth(work) * dice.lognormvariate(0, noise))
    return cost


def test_the_first_rounds_set_the_scale():
    cost = shown([plain()], rounds=2, noise=0.0)
    assert cost.seconds(plain(), HERE) == pytest.approx(truth(plain()), rel=0.01)


def test_what_was_measured_is_predicted():
    works = [plain(), drafted(5, 4), drafted(9, 4)]
    cost = shown(works)
    for work in works:
        assert cost.seconds(work, HERE) == pytest.approx(truth(work), rel=0.06)


def test_neighbours_of_what_was_measured_move_along():
    cost = shown([plain(), drafted(5, 4)])
    unseen = drafted(7, 4)
    assert cost.seconds(unseen, HERE) == pytest.approx(truth(unseen), rel=0.25)
    before = shown([plain()]).seconds(unseen, HERE)
    assert abs(cost.seconds(unseen, HERE) / truth(unseen) - 1) < abs(before / truth(unseen) - 1)
    sizes = [(unseen.nodes, unseen.depth), (drafted(5, 4).nodes, 4), (plain().nodes, 0)]
    apart = [cost.seconds(work, HERE) for work in (unseen, drafted(5, 4), plain())]
    assert cost.price(unseen, sizes, HERE) == pytest.approx(apart)


def test_the_first_rounds_of_a_generation_are_only_believed_until_others_are_seen():
    cost = shown([plain()], rounds=0)
    for factor, least in ((1.6, 1.6), (1.3, 1.3), (4.0, 1.3)):
        cost.observe(plain(), HERE, factor * truth(plain()), settling=True)
        assert cost.seconds(plain(), HERE) == pytest.approx(least * truth(plain()))
    assert cost.tried(plain(), HERE) == 3 and not cost.settled(HERE)
    cost.observe(plain(), HERE, truth(plain()))
    cost.observe(plain(), HERE, 1.5 * truth(plain()), settling=True)
    cost.observe(drafted(5, 4), HERE, 1.5 * truth(drafted(5, 4)), settling=True)
    assert cost.seconds(plain(), HERE) == pytest.approx(truth(plain())) and cost.settled(HERE) == 1
    assert not cost.trees and not cost.drafters  # no part is made dearer by them


def test_another_situation_starts_from_this_one():
    cost = shown([plain(), drafted(5, 4)])
    assert not cost.knows(HERE) and cost.knows(THERE)
    far = drafted(5, 4, rows=1, context=3000)
    assert cost.seconds(far, THERE) == pytest.approx(truth(far), rel=0.3)
    assert cost.tried(drafted(5, 4), HERE) == 20 and cost.tried(far, THERE) == 0


def test_a_hiccup_is_no_news():
    cost = shown([plain()])
    cost.observe(plain(), HERE, 40 * truth(plain()))
    assert cost.seconds(plain(), HERE) < 1.1 * truth(plain())


def test_plain_decoding_is_not_believed_to_take_longer_than_rounds_with_trees():
    cost = OnlineCost(Guess(drafts={"model": 0.2}))
    cost.observe(plain(), HERE, 3 * truth(plain()))  # a hiccup, as long as nothing else was seen
    assert cost.seconds(plain(), HERE) > 2.9 * truth(plain())
    for _ in range(12):
        cost.observe(drafted(5, 0), HERE, 1.2 * truth(plain()))
    assert cost.seconds(plain(), HERE) < 1.5 * truth(plain()) and cost.settled(HERE) == 1


def test_times_that_change_for_good_are_followed():
    cost = shown([plain()])
    for _ in range(60):
        cost.observe(plain(), HERE, 3 * truth(plain()))
    assert cost.seconds(plain(), HERE) == pytest.approx(3 * truth(plain()), rel=0.1)


def test_a_clock_that_stands_still_breaks_nothing():
    cost = shown([plain()], rounds=1)
    cost.observe(plain(), HERE, 0.0)
    assert cost.seconds(plain(), HERE) > 0
