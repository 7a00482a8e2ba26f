"""Rounds in which nothing is thought of."""

from __future__ import annotations

import random
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from specplug.controllers import Arm, Goodput, Memory
from specplug.controllers.agenda import Agenda
from specplug.controllers.base import Plan
from specplug.controllers.calm import Calm
from specplug.drafters import PromptLookup
from specplug.outcome import outcome_of
from specplug.trees import Chain

from .test_controllers import HOST, WORLDS, World, batch_of, finished_round

SHAPE = Chain(4).build()
PLAN = Plan(Arm("lookup", PromptLookup(), SHAPE), SHAPE)
CALM = Calm(PLAN, (0,), sampling=False, context=128, rounds=2, expected=2.0, luck=1.5, streak=None, tokens=None)


def outcome(accepted: int) -> Any:
    return outcome_of(finished_round(PLAN, batch_of(1, 100, 50), [[*range(accepted + 1)]], [accepted + 1], 1.0))


def test_it_holds_for_so_many_rounds_of_the_same_batch() -> None:
    calm, batch = replace(CALM), batch_of(1, 100, 50)
    assert calm.holds(batch) and calm.holds(batch) and not calm.holds(batch)


@pytest.mark.parametrize(
    "other",
    [{"rows": (1,)}, {"context": 128}, {"room": SHAPE.depth}, {"sampling": True}],
    ids=lambda other: next(iter(other)),
)
def test_another_batch_ends_it(other: dict[str, Any]) -> None:
    batch = batch_of(1, 100, SHAPE.depth + 1)
    assert replace(CALM).holds(batch)
    assert not replace(CALM).holds(SimpleNamespace(**vars(batch) | other))


def test_it_bears_bad_luck_up_to_a_point_and_any_good_luck() -> None:
    calm = replace(CALM)
    assert calm.goes_on(outcome(4)) and calm.luck == 4.5
    for _ in range(4):
        assert calm.goes_on(outcome(0))
    assert not calm.goes_on(outcome(0))


@pytest.mark.parametrize(("streak", "accepted", "goes_on"), [(True, 4, True), (True, 3, False), (False, 4, False)])
def test_a_streak_that_begins_or_ends_ends_it(streak: bool, accepted: int, goes_on: bool) -> None:
    assert replace(CALM, streak=streak).goes_on(outcome(accepted)) == goes_on


def test_enough_text_for_a_rehearsal_ends_it() -> None:
    calm = replace(CALM, tokens=6)
    assert calm.goes_on(outcome(4))
    assert not calm.goes_on(outcome(0))


def plans(world: World, seed: int, rounds: int = 150) -> tuple[list[Any], int]:
    """What is planned for one row; for how many rounds nothing was thought of."""
    goodput, rng, quiet, found = Goodput(thought=1e9).open(world.arms(), HOST, Memory()), random.Random(seed), 0, []
    for number in range(rounds):
        batch = batch_of(1, 100 + number, rounds + 5 - number)
        calm = goodput._calm
        plan = goodput.plan(batch)
        quiet += calm is not None and goodput._calm is calm
        path = world.path(plan, number, rng)
        goodput.observe(finished_round(plan, batch, [path], [len(path)], world.seconds(plan, 1)))
        found.append((plan.arm.label, plan.shape, plan.sizes))
    return found, quiet


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", WORLDS)
def test_every_plan_is_what_it_would_be_if_everything_was_asked_before_every_round(
    name: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = replace(WORLDS[name], noise=0.0, hiccup=0.0)
    calmly, quiet = plans(world, seed)
    assert quiet > 15
    monkeypatch.setattr(Agenda, "calm", lambda *_: None)
    assert plans(world, seed) == (calmly, 0)
