"""What is expected of the rows that are there, beside what was seen of all rows at any time."""

import random

import pytest

from specplug.acceptance import Acceptance
from specplug.controllers import Goodput, Memory
from specplug.controllers.base import Plan
from specplug.outcome import outcome_of
from specplug.row_acceptance import RowAcceptance, odds_ratio, scaled
from specplug.trees import Chain

from .test_acceptance import LOOKUP
from .test_controllers import HOST, World, batch_of, finished_round


def seen(rates: list[tuple[str, float]], rounds: int = 60) -> Acceptance:
    """Rows of these rates, each for so many rounds, one after another."""
    acceptance, rng, shape = Acceptance(), random.Random(0), Chain(4).build()
    for row, rate in rates:
        for _ in range(rounds):
            batch = batch_of(1, 10, 100)
            batch.rows = (row,)
            path = World(lookup=rate).path(Plan(LOOKUP, shape), 0, rng)
            acceptance.observe(outcome_of(finished_round(Plan(LOOKUP, shape), batch, [path], [len(path)], 1.0)))
    return acceptance


def test_rows_that_are_left_count_and_those_that_have_gone_do_not() -> None:
    acceptance = seen([("hard", 0.1), ("easy", 0.9)])
    acceptance.forget(["easy"])
    assert acceptance.first()[0] > 0.5
    assert acceptance.first(rows=["hard"])[0] < 0.4


def test_a_new_row_is_expected_to_be_as_rows_are_at_first() -> None:
    """Texts that begin without anything to copy and end in loops: pooled counts know the loops."""
    rows = RowAcceptance()
    for row in range(6):
        rows.observe(row, 10.0, 1.0, 1.0)
        for _ in range(20):
            rows.observe(row, 10.0, 9.0, 1.0)
        rows.forget([row])
    pooled = 0.85
    assert rows.level(range(8), pooled) < 0.3
    assert rows.level(range(8), 0.1) < 0.3
    assert rows.level(["new"], pooled) < 0.75  # one row is not trusted to be like others


def test_a_row_alone_is_known_by_its_own_last_rounds() -> None:
    rows = RowAcceptance()
    for _ in range(30):
        rows.observe("row", 2.0, 0.0, 1.0)
    for _ in range(20):
        rows.observe("row", 5.0, 5.0, 1.0)
    assert rows.level(["row"], 0.5) > 0.75


def test_a_row_that_comes_back_is_new() -> None:
    rows = RowAcceptance()
    rows.observe("row", 100.0, 100.0, 1.0)
    rows.forget(["row"])
    assert not rows.counts and not rows.young
    assert rows.rate("row", 0.3, 4.0) == pytest.approx(0.3)


def test_rows_like_all_others_change_nothing() -> None:
    acceptance = seen([("one", 0.5), ("two", 0.5)], rounds=200)
    assert acceptance.first(rows=["one", "two"])[0] == pytest.approx(acceptance.first()[0], abs=0.12)
    assert Acceptance().first(rows=["one"]) == pytest.approx(Acceptance().first())


@pytest.mark.parametrize("probability", [0.0, 0.2, 1.0])
def test_odds(probability: float) -> None:
    assert scaled(probability, 1.0) == pytest.approx(probability)
    assert scaled(0.5, odds_ratio(0.9, 0.5)) == pytest.approx(0.9)
    assert odds_ratio(1.0, 0.5) == pytest.approx(99.0)  # nothing is certain


def last_of_four_generations(seed: int) -> list[int]:
    """Nodes a round, in texts of two rows that copy a little for 40 tokens and nearly everything afterwards."""
    world = World(lookup=lambda written: 0.45 if written < 40 else 0.95)
    memory = Memory()
    for generation in range(4):
        goodput, rng, done = Goodput().open(world.arms()[2:], HOST, memory), random.Random(generation + seed), 0.0
        sizes = []
        while done < 200:
            batch = batch_of(2, 50 + int(done), 200 - int(done))
            plan = goodput.plan(batch)
            paths = [world.path(plan, done, rng) for _ in batch.rows]
            counts = [len(path) for path in paths]
            goodput.observe(finished_round(plan, batch, paths, counts, world.seconds(plan, 2)))
            sizes.append(plan.shape.size)
            done += sum(counts) / 2
        goodput.forget(batch.rows)
    return sizes


def test_a_generation_begins_with_what_beginnings_are_like() -> None:
    generations = [last_of_four_generations(seed) for seed in range(0, 2400, 100)]
    assert all(max(sizes[-5:]) >= 8 for sizes in generations)  # the end of the text is worth a long chain
    begun = [sum(sizes[:6]) / 6 for sizes in generations]
    assert 0 < begun[0] <= 5  # its beginning is not
    assert sum(0 < mean <= 5 for mean in begun) >= 18
    assert sum(begun) / len(begun) < 4.75


def test_a_drafter_is_tried_again_before_long_whatever_was_seen_of_it() -> None:
    """Given up in the first tokens, it would be worth a long chain for all that follow."""
    rounds = sorted(len(last_of_four_generations(seed)) for seed in range(0, 2400, 100))
    assert rounds[12] < 50 and rounds[-3] < 100  # 200 in plain decoding
