"""A cost model that corrects itself: against times that are known."""

from __future__ import annotations

import random

import pytest

from specplug.cost.guess import Guess
from specplug.cost.online import OnlineCost
from specplug.cost.scale import Scale

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
    quote = cost.quote(unseen, HERE)
    for work in (unseen, drafted(5, 4), plain()):
        assert quote.seconds(work.nodes, work.depth) == pytest.approx(cost.seconds(work, HERE))


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


@pytest.mark.parametrize("work", [plain(), drafted(5, 4)], ids=["plain", "drafted"])
@pytest.mark.parametrize("settling", [False, True])
def test_rounds_that_are_told_together_teach_what_they_do_one_by_one(work: Scale, settling: bool) -> None:
    together, one_by_one = shown([plain(), drafted(5, 4)]), shown([plain(), drafted(5, 4)])
    for situation in (HERE, THERE):
        times = [factor * truth(work) for factor in (1.3, 0.7, 1.1)]
        together.observe(work, situation, *times, settling=settling)
        for seconds in times:
            one_by_one.observe(work, situation, seconds, settling=settling)
    for field in ("situations", "trees", "drafters", "kinds", "_world", "_everywhere"):
        assert getattr(together, field) == getattr(one_by_one, field)


def test_what_is_kept_of_a_kind_of_round_is_not_taken_for_another() -> None:
    cost = OnlineCost(Guess(weight_bytes=1e6, kv_bytes=100.0, drafts={"model": 0.2, "other": 0.4}))
    works = [
        work._replace(budget=budget)
        for context in (1000, 50000)
        for rows in (1, 2)
        for drafter in ("model", "other")
        for budget in (None, 64)
        for work in [drafted(5, 4, rows=rows, context=context, drafter=drafter)]
    ]
    prices = [cost.seconds(work, HERE) for work in works]
    alone = [OnlineCost(cost.prior).seconds(work, HERE) for work in works]
    assert prices == alone and len(set(prices)) == len(works)
    for number in range(200):  # no end of them is kept
        cost.seconds(plain(context=number), HERE)
    assert len(cost._bases) < 100 and [cost.seconds(work, HERE) for work in works] == alone
