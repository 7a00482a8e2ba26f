"""What a drafter has to offer is kept as long as nothing changes that it depends on."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from specplug.controllers import Goodput, Memory
from specplug.controllers.base import Arm
from specplug.controllers.trees import Candidate, Priced, candidates, caps, climbed
from specplug.host import Batch

from .test_controllers import HOST, World, batch_of, finished_round

ROWS = 2


def generation(seed: int) -> Iterator[tuple[Goodput, Batch]]:
    """A planner between the rounds of a generation, before it plans and after; streaks of the lookup come and go."""
    world, rng = (
        World(model=0.7, lookup=lambda written: 0.98 if written // 40 % 2 else 0.2, noise=0.0),
        random.Random(seed),
    )
    goodput = Goodput().open(world.arms(), HOST, Memory())
    written = [0] * ROWS
    while max(written) < 300:
        batch = batch_of(ROWS, 50 + max(written), 310 - max(written))
        yield goodput, batch
        plan = goodput.plan(batch)
        yield goodput, batch
        paths = [world.path(plan, tokens, rng) for tokens in written]
        written = [tokens + len(path) for tokens, path in zip(written, paths, strict=True)]
        goodput.observe(finished_round(plan, batch, paths, [len(path) for path in paths], world.seconds(plan, ROWS)))


@pytest.mark.parametrize("seed", range(4))
def test_what_is_kept_is_worth_what_it_would_be_worth_made_now(seed: int) -> None:
    compared = 0
    for goodput, batch in generation(seed):
        if goodput._standing is None:
            continue
        for arm in goodput.arms[:-1]:
            kept, fresh = goodput._offers.option(arm, batch), goodput._offers._made(arm, batch, 0.0, 0.0)
            assert kept is not None
            assert kept.rate == pytest.approx(fresh.rate, rel=0.05)
            compared += 1
    assert compared > 100


def settled(monkeypatch: pytest.MonkeyPatch) -> tuple[Goodput, Batch, Arm, list[str]]:
    """A planner behind a generation that has every arm's offer, its draft; labels of what is worked out from now on."""
    made: list[str] = []

    def counted(self: Any, arm: Arm, *more: Any) -> Any:
        made.append(arm.label)
        return compute(self, arm, *more)

    *_, (goodput, batch) = generation(0)
    goodput._ledger.post()
    arm = goodput.arms[0]
    for each in goodput.arms:
        goodput._offers.option(each, batch)
    compute = type(goodput._offers)._made
    monkeypatch.setattr(type(goodput._offers), "_made", counted)
    return goodput, batch, arm, made


def test_what_is_offered_is_not_made_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    goodput, batch, arm, made = settled(monkeypatch)
    first = [goodput._offers.option(each, batch) for each in goodput.arms]
    assert [goodput._offers.option(each, batch) for each in goodput.arms] == first
    assert made == []
    goodput._offers.option(arm, batch, doubt=0.5)  # a hope, of which nothing was known
    assert made == [arm.label]


def test_an_offer_costs_more_as_plain_rounds_do_and_is_made_anew_where_they_are_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    goodput, batch, arm, made = settled(monkeypatch)
    before = goodput._offers.option(arm, batch)
    plain = goodput._prices.plain
    goodput._prices._plain = 1.1 * plain
    now = goodput._offers.option(arm, batch)
    assert before is not None and now is not None and made == []
    assert now.shape == before.shape and now.tokens == before.tokens
    assert now.seconds == pytest.approx(1.1 * before.seconds)
    goodput._prices._plain = 1.3 * plain
    goodput._offers.option(arm, batch)
    assert made == [arm.label]
    goodput._prices._plain = plain / 1.05
    goodput._offers.option(arm, batch)
    assert made == [arm.label] * 2  # less is as much a change as more


def test_an_offer_costs_what_is_left_to_be_read_by_now(monkeypatch: pytest.MonkeyPatch) -> None:
    goodput, batch, arm, made = settled(monkeypatch)
    for reading in (0.5, 0.1, 0.0):
        monkeypatch.setattr(type(goodput._reading), "seconds", lambda *_, much=reading: much)
        kept = goodput._offers.option(arm, batch)
        assert kept is not None and made == [] and kept.reading == reading
        fresh = goodput._offers._made(arm, batch, 0.0, reading)
        made.clear()
        assert kept.seconds == pytest.approx(fresh.seconds) and kept.tokens == pytest.approx(fresh.tokens)


@dataclass
class MadeUp:
    """A drafter whose children, nodes and levels are worth and cost what they may; `asked`: depths that its trees were asked for."""

    first: list[float]
    later: list[float]
    node: float
    level: float
    asked: list[int]

    def within(self, cap: int) -> Priced:
        self.asked.append(cap)
        trees = candidates(self.first, self.later, 16, cap)
        return [(1 + self.node * tree.size + self.level * tree.depth, tree) for tree in trees]


def made_up(rng: random.Random) -> MadeUp:
    first = sorted((rng.uniform(0.2, 0.95) for _ in range(8)), reverse=rng.random() < 0.7)
    later = sorted((rng.uniform(0.0, 0.5) for _ in range(4)), reverse=True)
    return MadeUp(first, later, rng.choice((0.0, 0.005, 0.05)), rng.choice((0.02, 0.1, 0.3)), [])


@pytest.mark.parametrize("start", [1, 3, 6])
def test_the_best_depth_is_found_from_wherever_it_is_looked_for(start: int) -> None:
    def rate(priced: tuple[float, Candidate]) -> float:
        return priced[1].tokens / priced[0]

    def pick(priced: Priced) -> tuple[float, Candidate]:
        return max(priced, key=rate)

    rng, depths, lost, asked = random.Random(start), caps(8), [], 0
    for _ in range(1000):
        drafter = made_up(rng)
        best = pick([tree for cap in depths for tree in drafter.within(cap)])
        drafter.asked = []
        trees, depth = climbed(depths, start, drafter.within, pick)
        found = pick(trees)
        assert depth == found[1].cap and len(drafter.asked) == len(set(drafter.asked))
        lost.append(1 - rate(found) / rate(best))
        asked += len(drafter.asked)
    assert max(lost) < 1e-9
    assert asked < 5000  # of 6000
