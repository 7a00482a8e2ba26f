"""`auto`: measures its own rounds and keeps to what yields the most tokens a second, plain decoding included.

An arm is worth trying while its potential beats the best arm's rate: its measured yield, moved towards the most its
tree could yield by how little, or how long ago, it was measured. Trying costs time when the arm turns out worse, and
what may be lost that way is kept in a ledger: a small share of the time spent, plus a share of what speculation gained
over plain decoding. So a useless draft is given up after a few rounds and looked at again now and then, while a good
one pays for the search for a better one.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass

from specplug.controllers.base import Arm, Controller, Plan, planned
from specplug.controllers.memory import Memory, Record, Situation
from specplug.host import Batch, Host
from specplug.round import Round


@dataclass
class Auto(Controller):
    """`allowance`: share of the time that trying may lose. `credit`: rounds of plain decoding it may lose at first."""

    allowance: float = 0.02
    credit: float = 2.0
    reinvest: float = 0.05  # share of the time that trying may lose besides, out of what speculation gained
    weight: float = 0.1  # of the newest round in the average yield
    margin: float = 1.03  # an arm must be better by so much to take over
    patience: int = 100  # rounds after which a measurement counts half
    stake: float = 0.25  # share of the time that plain decoding would still take that a draft may spend on reading

    needs_baseline = True

    def setup(self, host: Host, memory: Memory) -> None:
        self._key: Hashable = host.key
        self._memory = memory
        self._ledger = memory.ledger(host.key)
        self._current: str | None = None
        self._unread: dict[str, int] = {}  # by arm, as of the last plan: tokens its draft would have to read
        self._warm: set[str] = set()  # arms whose caches have caught up in this generation

    def plan(self, batch: Batch) -> Plan:
        situation = self._situation(batch)
        baseline = self.arms[-1]
        plain = situation.records.get(baseline.label, _NEW)
        if len(plain.recent) < (1 if situation.inherited else 2):
            return planned(baseline, batch)  # loses nothing, and is what everything else is measured against
        usable = [arm for arm in self.arms if batch.context >= arm.min_context and self._can_pay(arm, batch, plain)]
        best = self._best(situation, usable)
        trial = self._trial(situation, usable, best, batch)
        if trial is not None and trial.drafter.drafts_with_model and trial.label not in self._warm:
            return Plan(trial, trial.shape.cut(min(1, batch.room - 1)))  # its caches catch up: not to be measured yet
        return planned(trial or best, batch)

    def observe(self, finished: Round) -> None:
        arm, batch = finished.plan.arm, finished.batch
        situation = self._situation(batch)
        situation.rounds += 1
        record = situation.records.setdefault(arm.label, Record())
        record.last_tried = situation.rounds
        seconds, tokens = finished.seconds.total, sum(finished.commit.counts) / batch.num_rows
        caught_up = arm.label in self._warm or not arm.drafter.drafts_with_model
        self._settle(situation, arm, seconds, tokens, caught_up)
        self._learn_reading(arm, finished.seconds.draft)
        self._warm.add(arm.label)
        if caught_up and finished.plan.shape is arm.shape:  # else it is not what a round of this arm costs
            record.update(seconds, tokens, batch.num_rows, self.weight)

    def _situation(self, batch: Batch) -> Situation:
        host = (self._key, batch.sampling)
        return self._memory.situation(host, batch.num_rows.bit_length(), batch.context.bit_length())

    def _can_pay(self, arm: Arm, batch: Batch, plain: Record) -> bool:
        """Whether what `arm`'s draft has not read yet (a prompt, at first) can pay within the tokens that are left."""
        unread = arm.drafter.unread(batch)
        if unread <= LITTLE * batch.num_rows:
            return True
        guess = plain.seconds / batch.num_rows / READING
        seconds = unread * self._ledger.reading.get(type(arm.drafter).__name__, guess)
        if seconds > self.stake * batch.room * plain.seconds:
            return False
        self._unread[arm.label] = unread
        return True

    def _learn_reading(self, arm: Arm, seconds: float) -> None:
        unread = self._unread.get(arm.label, 0)
        self._unread.clear()
        if unread:
            self._ledger.reading[type(arm.drafter).__name__] = seconds / unread

    def _settle(self, situation: Situation, arm: Arm, seconds: float, tokens: float, caught_up: bool) -> None:
        """Book a round: the allowance it earned, and what it gained or lost against plain decoding."""
        plain = situation.records.get(self.arms[-1].label, _NEW)
        if not plain.samples:
            return
        if self._ledger.spare is None:
            self._ledger.spare = self.credit * plain.seconds
        gain = tokens * plain.seconds - seconds if arm.shape.size else 0.0
        if arm.label == self._current:  # no trial, but what seems best: by its averages, without the round's luck
            gain = max(0.0, situation.records[arm.label].rate * plain.seconds - 1) * seconds
        elif not caught_up:
            gain = max(gain, -2 * plain.seconds)  # a long prompt must not cost an arm its trial
        earned = self.allowance * seconds + min(gain, self.reinvest * seconds)
        self._ledger.spare = min(self._ledger.spare + earned, 20 * plain.seconds)

    def _best(self, situation: Situation, usable: list[Arm]) -> Arm:
        def rate(arm: Arm) -> float:
            held = arm.label == self._current or arm is self.arms[-1]
            return situation.records.get(arm.label, _NEW).rate * (self.margin if held else 1.0)

        best = max(reversed(usable), key=rate)  # plain decoding stands last and wins ties
        self._current = best.label
        return best

    def _trial(self, situation: Situation, usable: list[Arm], best: Arm, batch: Batch) -> Arm | None:
        """The arm with the most potential, if it has more than the best and its likely loss can be afforded."""
        plain, spare = situation.records[self.arms[-1].label].seconds, self._ledger.spare or 0.0
        leader = situation.records[best.label].rate
        chosen, most = None, leader
        for arm in usable:
            if arm is best or batch.room <= arm.shape.depth:
                continue
            record = situation.records.get(arm.label, _NEW)
            if not arm.shape.size:
                potential, loss = self._potential(situation, arm, record), -math.inf  # never unaffordable
            elif record.samples:
                potential = self._potential(situation, arm, record)
                loss = record.seconds * max(0.0, 1 - record.rate / leader)
            else:
                potential = math.inf if not arm.drafter.drafts_with_model else 1e9 / (1 + arm.shape.depth)
                loss = plain * (1.0 if arm.drafter.drafts_with_model else 0.3)
                if arm.label in self._warm:
                    loss -= 2 * plain  # its caches have caught up: do not let that have been for nothing
            if potential > most and loss <= max(spare, 0.0 if record.samples else spare):
                chosen, most = arm, potential
        return chosen

    def _potential(self, situation: Situation, arm: Arm, record: Record) -> float:
        waited = situation.rounds - record.last_tried
        samples = record.samples / (1 + waited / self.patience)
        if not arm.shape.size:  # only its time is in doubt; all else is measured against it
            return record.rate * (1 + min(0.3, 0.3 / math.sqrt(samples)))
        doubt = 1 / (1 + samples)
        most = min(arm.shape.depth + 1.0, 2 * record.tokens + 2)
        seconds = record.seconds * (1 - 0.15 * doubt)
        return (record.tokens + max(0.0, most - record.tokens) * doubt) / seconds


LITTLE = 64  # tokens a row that a draft may have missed without anybody counting
READING = 50  # a draft reads a token in so small a part of a decode step's share of a row, before it was measured
_NEW = Record()
