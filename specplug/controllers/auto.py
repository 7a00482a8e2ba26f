"""`auto`: measures its own rounds and keeps to what yields the most tokens a second, plain decoding included.

Trying an arm that turns out worse costs time. What may be lost that way is bounded: a small share of the time spent so
far, plus a share of what speculation has already gained over plain decoding. So a useless draft is given up after a few
rounds and looked at again ever more rarely, while a good one pays for the search for a better one.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from specplug.controllers.base import Arm, Controller, Plan, planned
from specplug.controllers.memory import Memory, Record, Situation
from specplug.host import Batch, Host
from specplug.round import Round


@dataclass
class Auto(Controller):
    """`allowance`: share of the time that trying may lose. `trials`: rounds an arm gets before it is judged."""

    allowance: float = 0.02
    trials: int = 3
    weight: float = 0.1  # of the newest round in the averages
    margin: float = 1.03  # an arm must be better by so much to take over

    needs_baseline = True

    def setup(self, host: Host, memory: Memory) -> None:
        self._host_key = host.key
        self._memory = memory
        self._current: str | None = None
        self._warm: set[str] = set()  # arms whose caches have caught up in this generation

    def plan(self, batch: Batch) -> Plan:
        situation = self._situation(batch)
        usable = [arm for arm in self.arms if batch.context >= arm.min_context]
        arm = self._untried(situation, usable) or self._best(situation, usable)
        return planned(arm, batch)

    def observe(self, finished: Round) -> None:
        situation = self._situation(finished.batch)
        label = finished.plan.arm.label
        first_use = label not in self._warm
        self._warm.add(label)
        tokens = float(sum(finished.commit.counts))
        seconds = finished.seconds.total
        situation.rounds += 1
        situation.seconds += seconds
        record = situation.records.setdefault(label, Record())
        record.last_tried = situation.rounds
        self._settle(situation, seconds, tokens)
        if first_use and finished.plan.arm.shape.size:
            return  # it caught up on the prompt: not what a round costs
        if finished.plan.shape is finished.plan.arm.shape:
            record.update(seconds, tokens, self.weight)

    def _situation(self, batch: Batch) -> Situation:
        key: Hashable = (self._host_key, batch.num_rows, batch.context.bit_length(), batch.sampling)
        return self._memory.situation(key)

    def _settle(self, situation: Situation, seconds: float, tokens: float) -> None:
        """Book a round: what it gained or lost against the baseline, and the allowance it earned."""
        baseline = next((r for r in (situation.records.get(a.label) for a in self.arms if not a.shape.size) if r), None)
        situation.spare += self.allowance * seconds
        if baseline is not None and baseline.rate > 0:
            situation.spare += min(tokens / baseline.rate - seconds, 0.05 * seconds)

    def _untried(self, situation: Situation, usable: list[Arm]) -> Arm | None:
        """An arm worth trying now, if its likely loss can be afforded."""
        baseline = usable[-1]  # plain decoding, which loses nothing, is measured first
        if situation.records.get(baseline.label, _NEW).rounds < 2:
            return baseline
        loss = situation.records[baseline.label].seconds
        best = self._best(situation, usable)
        for arm in usable:
            record = situation.records.get(arm.label, _NEW)
            young = record.rounds < self.trials
            waited = situation.rounds - record.last_tried
            due = arm is not best and waited > 8 * 2 ** min(record.rounds, 6)
            if (young and situation.spare > -3 * loss and self._hopeful(situation, arm, record)) or (
                due and situation.spare > loss
            ):
                return arm
        return None

    def _hopeful(self, situation: Situation, arm: Arm, record: Record) -> bool:
        """Whether the arm could win at all: its best possible yield against the best rate seen."""
        if not record.rounds:
            return True
        rows = situation.records[self.arms[-1].label].tokens
        best = max(r.rate for r in situation.records.values())
        return record.seconds > 0 and rows * (arm.shape.depth + 1) / record.seconds > best

    def _best(self, situation: Situation, usable: list[Arm]) -> Arm:
        def rate(arm: Arm) -> float:
            record = situation.records.get(arm.label, _NEW)
            judged = record.rounds >= min(self.trials, 2)
            return record.rate * (self.margin if arm.label == self._current else 1.0) if judged else 0.0

        best = max(reversed(usable), key=rate)  # plain decoding stands last and wins ties
        self._current = best.label
        return best


_NEW = Record()
