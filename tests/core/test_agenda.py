"""When a planner thinks again: what is due for what has happened since the last decision."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from specplug.controllers import Goodput, Memory
from specplug.controllers.agenda import SURPRISE, Agenda, Due
from specplug.controllers.base import Prediction
from specplug.outcome import outcome_of

from .test_controllers import GOOD_MODEL, HOST, batch_of, finished_round

BATCH = batch_of(2, 100, 500)


class Deciding:
    """A planner that has just looked, and may look again."""

    def __init__(self) -> None:
        self.goodput = Goodput().open(GOOD_MODEL.arms(), HOST, Memory())
        assert isinstance(self.goodput, Goodput)
        while self.goodput._standing is None:
            self.round()
        self.agenda = Agenda(self.goodput._learnt, self.goodput._beliefs)
        option = self.goodput._standing.option._replace(tokens=2 * SURPRISE)
        self.standing: Any = replace(self.goodput._standing, until=10**6, option=option)
        self.goodput._learnt.thinking.spare = 1.0

    def round(self) -> None:
        plan = self.goodput.plan(BATCH)
        self.goodput.observe(finished_round(plan, BATCH, [[1], [1]], [2, 2], GOOD_MODEL.seconds(plan, 2)))

    def due(self, **changed: Any) -> Due:
        standing = self.standing
        given = {"situation": standing.situation, "key": standing.key} | changed
        return self.agenda.due(standing, BATCH, given["situation"], given["key"])

    def follow(self, expected: float, tokens: int) -> None:
        """A round of which so many tokens a row were expected."""
        plan = self.goodput.plan(BATCH)
        plan = replace(plan, predicted=Prediction("", expected, 1.0))
        finished = finished_round(plan, BATCH, [[1], [1]], [tokens, tokens], 1.0)
        self.agenda.follow(outcome_of(finished))


def unaffordable(deciding: Deciding) -> None:
    deciding.goodput._learnt.thinking.spare = -1.0


def test_nothing_is_due_where_nothing_has_happened() -> None:
    deciding = Deciding()
    assert deciding.due() is Due.NOTHING
    assert deciding.agenda.due(None, BATCH, "any", "any") is Due.LOOK


@pytest.mark.parametrize("poor", [False, True])
def test_another_situation_is_looked_at_and_another_batch_reviewed_at_any_price(poor: bool) -> None:
    deciding = Deciding()
    if poor:
        unaffordable(deciding)
    assert deciding.due(situation="another") is Due.LOOK
    assert deciding.due(key="another") is Due.REVIEW
    deciding.standing = replace(deciding.standing, streak=not deciding.standing.streak)
    assert deciding.due() is Due.REVIEW


@pytest.mark.parametrize("happens", ["a trial", "time", "both and another batch"])
def test_a_look_is_due_when_it_is_paid_for(happens: str) -> None:
    deciding = Deciding()
    if happens != "time":
        deciding.agenda.looked(tries=True)
    if happens != "a trial":
        deciding.standing = replace(deciding.standing, until=0)
    changed = {"key": "another"} if "another" in happens else {}
    assert deciding.due(**changed) is Due.LOOK
    unaffordable(deciding)
    assert deciding.due(**changed) is (Due.REVIEW if changed else Due.NOTHING)


def test_rehearsals_and_bad_luck_are_reviewed_and_good_luck_is_not() -> None:
    deciding = Deciding()
    deciding.agenda.heard.append(deciding.goodput.arms[0])
    assert deciding.due() is Due.REVIEW
    unaffordable(deciding)
    assert deciding.due() is Due.NOTHING
    deciding.goodput._learnt.thinking.spare = 1.0
    deciding.agenda.reviewed()
    assert deciding.due() is Due.NOTHING
    surprise = max(SURPRISE, deciding.standing.option.tokens)
    deciding.follow(expected=1.0, tokens=9)
    assert deciding.due() is Due.NOTHING
    deciding.follow(expected=9.0, tokens=1)
    assert deciding.due() is Due.NOTHING  # made up for by the luck before
    deciding.follow(expected=1.0 + 0.9 * surprise, tokens=1)
    assert deciding.due() is Due.NOTHING
    deciding.follow(expected=1.0 + 0.2 * surprise, tokens=1)
    assert deciding.due() is Due.REVIEW
    deciding.agenda.looked(tries=False)
    assert deciding.due() is Due.NOTHING
