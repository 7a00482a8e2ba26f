"""When a planner thinks again: what is due for what has happened since the last decision."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from specplug.controllers import Goodput, Memory
from specplug.controllers.agenda import SURPRISE, Agenda, Due
from specplug.controllers.base import Prediction
from specplug.outcome import outcome_of
from specplug.trees import Chain

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
        self.standing: Any = replace(self.goodput._standing, until=10**6, stale=10**6, option=option)
        self.goodput._learnt.thinking.spare = 1.0

    def round(self) -> None:
        plan = self.goodput.plan(BATCH)
        self.goodput.observe(finished_round(plan, BATCH, [[1], [1]], [2, 2], GOOD_MODEL.seconds(plan, 2)))

    def due(self, **changed: Any) -> Due:
        standing = self.standing
        given = {"situation": standing.situation, "rows": standing.rows} | changed
        return self.agenda.due(standing, BATCH, given["situation"], given["rows"])

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
    assert deciding.due(rows="another") is Due.REVIEW
    deciding.standing = replace(deciding.standing, streak=not deciding.standing.streak)
    assert deciding.due() is Due.REVIEW


@pytest.mark.parametrize("happens", ["a trial", "time", "both and another batch"])
def test_a_look_is_due_when_it_is_paid_for(happens: str) -> None:
    deciding = Deciding()
    if happens != "time":
        deciding.agenda.looked(tries=True)
    if happens != "a trial":
        deciding.standing = replace(deciding.standing, until=0)
    changed = {"rows": "another"} if "another" in happens else {}
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


def test_a_tree_deeper_than_what_is_left_is_reviewed_where_it_is_not_simply_cut() -> None:
    deciding, depth = Deciding(), 4
    tree = deciding.standing.option._replace(arm=deciding.goodput.arms[0], grown=Chain(depth).build)
    for sampling, room, due in [
        (False, depth, Due.NOTHING),
        (True, depth, Due.REVIEW),
        (True, depth + 1, Due.NOTHING),
    ]:
        standing = replace(deciding.standing, option=tree)
        batch = batch_of(2, 100, room)
        batch.sampling = sampling
        assert deciding.agenda.due(standing, batch, standing.situation, standing.rows) is due


@pytest.mark.parametrize(("ahead", "lead"), [(1.0, 1.0), (1.5, 1.5), (2.0, 2.0), (9.0, 3.0)])
def test_a_decision_stands_the_longer_the_farther_it_is_ahead(
    ahead: float, lead: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    goodput = Deciding().goodput
    assert goodput._standing is not None
    rival = goodput._standing.option._replace(arm=goodput.arms[0], tokens=2.0, seconds=1.0, samples=100.0)
    situation = goodput._standing.situation
    for familiar, row in [(0.0, None), (0.5, 0), (1.0, 1)]:  # as far as its rows are known
        if row is not None:
            goodput._beliefs.of(rival.arm, False).rows.observe(row, 1.0, 1.0, 1.0)
        for samples, rounds in [(100.0, goodput.interval), (2.0, 1)]:
            best = rival._replace(seconds=1.0 / ahead, samples=samples)
            monkeypatch.setattr(goodput, "_best", lambda _, found=(best, rival): found)
            goodput._look(BATCH, situation)
            assert goodput._standing.lead == pytest.approx(1 + familiar * (lead - 1))
            now = goodput._learnt.rounds[situation]
            assert goodput._standing.until == now + int(goodput._standing.lead * rounds)
            assert goodput._standing.stale == now + rounds


def test_what_is_far_ahead_bears_more_bad_luck() -> None:
    deciding = Deciding()
    deciding.standing = replace(deciding.standing, lead=2.0)
    surprise = max(SURPRISE, deciding.standing.option.tokens)
    deciding.follow(expected=1.0 + 1.9 * surprise, tokens=1)
    assert deciding.due() is Due.NOTHING
    deciding.follow(expected=1.0 + 0.2 * surprise, tokens=1)
    assert deciding.due() is Due.REVIEW


def test_rows_that_get_in_and_out_of_a_streak_again_have_their_trees() -> None:
    deciding = Deciding()
    outside, rows = deciding.standing.option, deciding.standing.rows
    inside = outside._replace(tokens=9.0)
    assert not deciding.standing.turns(True)
    assert deciding.standing.option is outside  # nothing is known of the other kind
    deciding.standing.reviewed(rows, inside, True, stale=10**6)
    for streak, option in [(True, inside), (False, outside), (False, outside), (True, inside)]:
        assert deciding.standing.turns(streak)
        assert deciding.standing.option is option and deciding.standing.streak is streak
        assert deciding.standing.planned(BATCH).predicted.tokens == option.tokens
    deciding.standing.reviewed(rows, inside, True, stale=10**6)
    assert not deciding.standing.turns(False)  # what stood before is old by now
    deciding.standing.reviewed("other rows", outside, False, stale=10**6)
    assert not deciding.standing.turns(True)  # it was of other rows


def test_the_tree_of_what_is_far_ahead_is_reviewed_as_often_as_everything_is_looked_at_elsewhere() -> None:
    deciding = Deciding()
    goodput, situation = deciding.goodput, deciding.standing.situation
    now = goodput._learnt.rounds[situation]
    deciding.standing = replace(deciding.standing, stale=now)
    assert deciding.due() is Due.REVIEW
    assert goodput._standing is not None
    goodput._standing.stale = now
    goodput._ledger.post()
    assert goodput._reviewed(goodput._standing, BATCH)
    assert goodput._standing.stale == now + goodput._stands(goodput._standing.option)
    unaffordable(deciding)
    assert deciding.due() is Due.NOTHING
