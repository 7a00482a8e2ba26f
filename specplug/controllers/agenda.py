"""When a planner thinks again: of nothing, of what it decided for, or of everything that it could do."""

from __future__ import annotations

from collections.abc import Hashable
from enum import Enum, auto

from specplug.controllers.base import Arm
from specplug.controllers.beliefs import Beliefs
from specplug.controllers.calm import Calm
from specplug.controllers.memory import Learnt
from specplug.controllers.option import Standing
from specplug.host import Batch
from specplug.outcome import Outcome

SURPRISE = 1.5  # tokens a row that rounds may yield less than was expected before the decision is looked at again


class Due(Enum):
    """`REVIEW`: the arm that was decided for, beside what came second. `LOOK`: every arm."""

    NOTHING = auto()
    REVIEW = auto()
    LOOK = auto()


class Agenda:
    """What happened since the last decision of a generation. `heard`: arms whose rehearsals since were better than what was believed."""

    def __init__(self, learnt: Learnt, beliefs: Beliefs) -> None:
        self._learnt, self._beliefs = learnt, beliefs
        self.heard: list[Arm] = []
        self._news = False
        self._drift = 0.0  # tokens a row that came over those that were expected

    def due(self, standing: Standing | None, batch: Batch, situation: Hashable, rows: Hashable) -> Due:
        """What has to be thought of before the next round; most reviews change a tree and no arm, and cost a small part of a look."""
        if standing is None or standing.situation != situation:
            return Due.LOOK
        affords, now = self._learnt.thinking.affords, self._learnt.rounds[situation]
        if affords and (self._news or now >= standing.until):
            return Due.LOOK
        changed = (
            standing.rows != rows
            or standing.too_deep(batch)
            or not standing.turns(self._beliefs.in_streaks(standing.option.arm, batch))
        )
        if changed or (affords and (now >= standing.stale or self.heard or self._luck(standing) < 0)):
            return Due.REVIEW
        return Due.NOTHING

    def calm(self, standing: Standing, batch: Batch, tokens: int | None) -> Calm | None:
        """What follows the next round if nothing happens that could change a thing. `tokens`: see `Calm`."""
        rounds = min(standing.until, standing.stale) - self._learnt.rounds[standing.situation] - 1
        if rounds <= 0 or self._news or self.heard or not self._learnt.thinking.affords:
            return None
        plan = standing.planned(batch)
        return Calm(
            plan,
            batch.rows,
            batch.sampling,
            context=1 << batch.context.bit_length(),
            rounds=rounds,
            expected=standing.option.tokens,
            luck=self._luck(standing),
            streak=standing.streak if plan.arm.shape.is_chain and plan.shape.size else None,
            tokens=tokens,
        )

    def _luck(self, standing: Standing) -> float:
        """Tokens a row that rounds may still yield less than was expected before a decision should be looked at again: the fewer, the
        farther it was ahead. One that yields more stands until its next look: luck that is followed at once makes trees too large."""
        return self._drift + standing.lead * max(SURPRISE, standing.option.tokens)

    def follow(self, outcome: Outcome) -> None:
        """A round is over."""
        predicted = outcome.plan.predicted
        if predicted is not None and predicted.tokens is not None:
            self._drift += sum(outcome.counts) / outcome.num_rows - predicted.tokens

    def reviewed(self) -> None:
        """What was decided for stands, by all that is known of it."""
        self.heard, self._drift = [], 0.0

    def looked(self, tries: bool) -> None:
        """Everything was looked at. `tries`: something else comes next, whose outcome may change what was decided."""
        self.reviewed()
        self._news = tries
