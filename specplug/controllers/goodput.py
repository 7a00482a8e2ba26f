"""`goodput`: as many expected tokens a second as can be had, from expected tokens over predicted time.

SmartSpec (arXiv 2406.14066): speculate as much as raises goodput, down to nothing. Sequoia's adaptive form: the tree's
size and depth that maximise G(n, d) / (T_target(n) + d T_draft), for the present batch and context. The acceptance is
learnt per drafter, by depth and rank (acceptance.py), the times by what rounds took (cost/online.py), so that a few
rounds with one tree say what any other tree of that drafter would yield and cost.

A drafter is worth trying while its potential beats the best: its yield if it were as good as what was seen of it leaves
room for, the more the less was seen or the longer ago. What trying may lose is kept in a purse, so that a useless draft is
given up after a few rounds and looked at again now and then: nothing is for ever, also not plain decoding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from time import perf_counter

from specplug.controllers.base import Controller, Plan, Prediction
from specplug.controllers.beliefs import Beliefs
from specplug.controllers.memory import Memory
from specplug.controllers.offers import Offers
from specplug.controllers.option import Option, Standing, reason_to_try, situation_of, widest
from specplug.controllers.prices import Prices
from specplug.controllers.reading import Reading
from specplug.controllers.rehearsal import Rehearsal
from specplug.controllers.trees import Candidate
from specplug.host import Batch, Host
from specplug.round import Round
from specplug.tree import ROOT_ONLY

SETTLING = 2  # a generation's first rounds, slower than those to come: nothing is warm yet
UNSETTLED = 0.25  # doubt of a plain round's time that only such rounds spoke of
DRIFTS = 120  # rounds beyond its patience after which all that was seen of a drafter is worth no more than one trial
LEAST_KNOWN = 1e-3  # trials: not none, to divide by
STALE = 0.015  # by how much a round in which plain decoding is not measured adds to the doubt of its time
CHANCE = 0.25  # of what trying may gain at best that it may lose at most
HORIZON = 100  # tokens that are still to be written, at least: by this text or the next one
SURPRISE = 1.5  # tokens a row that rounds may yield less than was expected before the decision is looked at again


@dataclass
class Goodput(Controller):
    """`allowance`: share of the time that trying may lose. `interval`: rounds between two looks at the trees' sizes."""

    allowance: float = 0.02
    credit: float = 2.0  # rounds of plain decoding that trying may lose at first
    reinvest: float = 0.02  # share of the time that trying may lose besides, out of what speculation gained
    margin: float = 1.03  # something else must be better by so much to take over
    patience: int = 30  # rounds for which what was seen holds: texts change
    interval: int = 7
    thought: float = 0.1  # share of the time that may be spent on looks
    stake: float = 0.25  # share of the time that plain decoding would still take that a draft may spend on reading
    gamble: float = 0.08  # share of the time that the best would take that a draft may read for on a mere hope

    needs_baseline = True
    resizes = True

    def setup(self, host: Host, memory: Memory) -> None:
        self.arms = (*widest(self.arms[:-1]), self.arms[-1])
        self._baseline = self.arms[-1]
        self._learnt = memory.of(host, self.arms)
        self._purse = self._learnt.purse
        self._beliefs = Beliefs(self._learnt.acceptance, self.arms)
        self._reading = Reading(self._learnt.reading, self.stake)
        padded: Callable[[Sequence[int]], int] = getattr(host, "padded_tokens", None) or _rectangle
        self._by_row = padded((1, 3)) < _rectangle((1, 3))  # rows of unequal size cost less than padded ones
        self._prices = Prices(self._learnt.cost, self.arms, padded)
        self._offers = Offers(self._beliefs, self._prices, self._reading, self._by_row, self._tree)
        self._current: str | None = None
        self._standing: Standing | None = None
        self._plain: float | None = None  # seconds of a plain round, at the last look or when first known
        self._news = False  # something has become known that may change what was decided
        self._thinking = self._learnt.thinking
        self._rehearsal = Rehearsal(self.arms)
        self._drift = 0.0  # tokens a row that came since the last decision over those that were expected
        self._finished = 0  # rounds of this generation
        self._warm: set[str] = set()  # arms whose caches have caught up in this generation

    def plan(self, batch: Batch) -> Plan:
        situation = situation_of(batch)
        self._rehearsal.plan(batch)
        self._prices.look(batch, situation)
        chosen = self._standing_option(batch, situation)
        if chosen is None:
            tried, knows = self._prices.plain_tried(), self._prices.knows()
            if tried < (1 if knows else 2):  # loses nothing, and is what everything else is measured against
                seconds = self._prices.plain if tried or knows else None
                return Plan(self._baseline, ROOT_ONLY, predicted=Prediction("measures plain decoding", 1.0, seconds))
            begun = perf_counter()
            chosen = self._look(batch, situation)
            self._thinking.spend(perf_counter() - begun)
        self._reading.begin(chosen.arm, batch)
        if chosen.arm.drafter.drafts_with_model and chosen.arm.label not in self._warm:
            return chosen.catching_up(batch)
        return chosen.plan(batch)

    def _standing_option(self, batch: Batch, situation: Hashable) -> Option | None:
        """What was decided, as long as it stands; with another tree if the rows are in a streak by now, or are no more."""
        standing = self._standing
        if standing is None or standing.key != self._key(batch, situation):
            return None
        if self._due(standing, situation) and self._thinking.affords:
            return None
        option, streak = standing.option, self._beliefs.in_streaks(standing.option.arm, batch)
        if streak != standing.streak and (other := self._offers.option(option.arm, batch)) is not None:
            option = replace(other, reason=option.reason)
            self._standing = replace(standing, option=option, streak=streak)
        return option

    def _key(self, batch: Batch, situation: Hashable) -> Hashable:
        """A batch of another one is decided for anew."""
        return situation, batch.rows if self._by_row else batch.num_rows, min(batch.room, 16).bit_length()

    def _due(self, standing: Standing, situation: Hashable) -> bool:
        """Whether a decision should be looked at again: after some rounds; after news; and when those since yielded so much less than was
        expected. One that yields more stands until its next look: luck that is followed at once makes trees too large."""
        disappointed = self._drift < -max(SURPRISE, standing.option.tokens)
        return disappointed or self._news or self._learnt.rounds[situation] >= standing.until

    def _look(self, batch: Batch, situation: Hashable) -> Option:
        """The best option, or what to try instead. Looked at anew every few rounds, and when the batch changes."""
        self._drift, self._news, self._plain = 0.0, False, self._prices.plain
        options = [option for arm in self.arms if (option := self._offers.option(arm, batch)) is not None]
        best = self._best(options)
        trial = self._trial(options, best, batch, situation)
        best = replace(best, reason=f"best of {len(options)}" if len(options) > 1 else "nothing else can pay here")
        # looked at often while little is known of it
        sure = self.interval if best.arm is self._baseline else max(1, min(self.interval, int(best.samples / 2)))
        option, rounds = replace(best, reason=f"{best.reason}, at the last look"), self._learnt.rounds[situation]
        self._standing = Standing(
            self._key(batch, situation), rounds + sure, option, self._beliefs.in_streaks(best.arm, batch)
        )
        if trial is None:
            return best
        self._news = True  # what comes of it is looked at in the next round
        return replace(trial, reason=reason_to_try(trial))

    def _best(self, options: list[Option]) -> Option:
        def worth(option: Option) -> float:
            held = option.arm.label == self._current or option.arm is self._baseline
            return self._worth(option) * (self.margin if held else 1.0)

        known = [option for option in options if option.arm is self._baseline or option.samples]
        best = max(reversed(known), key=worth)  # plain decoding stands last and wins ties
        self._current = best.arm.label
        return best

    def _trial(self, options: list[Option], best: Option, batch: Batch, situation: Hashable) -> Option | None:
        """The option with the most potential, if it has more than the best and its likely loss can be afforded."""
        chosen, most = None, self._worth(best)
        for option in options:
            if option.arm is best.arm:
                continue
            loss = self._loss(option, best, options[-1], batch.room)
            hopeful = self._hope(option, batch, situation) if self._purse.affords(loss) else None
            if hopeful is None or self._worth(hopeful) <= most:
                continue
            # what it may gain, should it be that good, for as long as a text goes on
            gain = max(batch.room, HORIZON) / best.rate * (1 - self._worth(best) / self._worth(hopeful))
            if loss <= CHANCE * gain:
                chosen, most = hopeful, self._worth(hopeful)
        return chosen

    def _loss(self, option: Option, best: Option, plain: Option, room: int) -> float:
        """Seconds that a round of `option` will probably lose."""
        if option is plain:
            return max(0.0, plain.seconds * (1 - plain.rate / best.rate))
        little = option.reading <= self.gamble * room / best.rate
        # what it reads is not lost if this generation will pay for it, for all that is believed of it
        read = 0.0 if option.rate > best.rate or (little and not option.samples) else option.reading
        if option.arm.label not in self._warm:
            read += self._learnt.warming.get(option.arm.label, 0.0)
        if option.samples:
            return read + max(0.0, option.seconds * (1 - option.rate / best.rate))
        loss = read + plain.seconds * (1.0 if option.arm.drafter.drafts_with_model else 0.3)
        # once its caches have caught up: do not let that have been for nothing
        return loss - 2 * plain.seconds if option.arm.label in self._warm else loss

    def _hope(self, option: Option, batch: Batch, situation: Hashable) -> Option | None:
        """`option` as good as what was seen of it leaves room for; less room, the more was seen and the more lately."""
        waited = self._learnt.waited(situation, option.arm.label)
        if option.arm is self._baseline:  # only its time is in doubt; all else is measured against it
            if not waited:
                return None  # measured just now; whatever else is about as good must get its round, too
            settled = self._prices.plain_settled()
            doubt = (0.1 + STALE * waited) / math.sqrt(max(settled, 1))
            return replace(option, tokens=1 + min(0.5, doubt if settled else doubt + UNSETTLED))
        # what is doubted of an estimate grows evenly with time where the truth walks at random
        unsure = (
            1 / max(self._beliefs.known_of(option.arm, batch), LEAST_KNOWN) + max(0, waited - self.patience) / DRIFTS
        )
        return self._offers.option(option.arm, batch, doubt=unsure / (1 + unsure))

    def _tree(self, priced: Sequence[tuple[float, Candidate]]) -> tuple[float, Candidate]:
        """The best of one drafter's trees, with the seconds of a round."""
        return max(priced, key=lambda p: p[1].tokens / p[0])

    def _worth(self, option: Option) -> float:
        """What is compared between drafters, plain decoding included."""
        return option.rate

    def observe(self, finished: Round) -> None:
        arm, batch = finished.plan.arm, finished.batch
        situation = situation_of(batch)
        self._learnt.tick(situation, arm.label)
        self._thinking.earn(finished.seconds.work, self.thought)
        caught_up = arm.label in self._warm or not arm.drafter.drafts_with_model
        self._warm.add(arm.label)
        self._prices.look(batch, situation)
        read = self._reading.observe(arm, finished.seconds.draft, self._prices.forward, finished.plan.shape.depth)
        self._settle(finished, situation, caught_up)
        if finished.plan.predicted is not None and finished.plan.predicted.tokens is not None:
            self._drift += sum(finished.commit.counts) / batch.num_rows - finished.plan.predicted.tokens
        for rehearsed in self._rehearsal.observe(finished, self._beliefs.of):
            self._learnt.look(situation, rehearsed.label)
            self._news = True  # a text that begins to repeat itself
        self._beliefs.end_streaks(arm)
        if finished.plan.shape.size:
            self._beliefs.of(arm, batch.sampling).observe(finished)
        if caught_up and not read:
            self._prices.observe(finished, situation, settling=self._finished < SETTLING)
        elif not read:
            self._learnt.warming[arm.label] = self._prices.excess(finished, situation)
        self._finished += 1

    def _settle(self, finished: Round, situation: Hashable, caught_up: bool) -> None:
        """Book what the round gained or lost against plain decoding."""
        arm, batch, seconds = finished.plan.arm, finished.batch, finished.seconds.work
        if self._plain is None:
            if not self._prices.plain_tried():
                return
            self._plain = self._prices.plain
        plain = self._plain
        if self._purse.spare is None:
            self._purse.spare = self.credit * plain
        gain = sum(finished.commit.counts) / batch.num_rows * plain - seconds if finished.plan.shape.size else 0.0
        if arm.label == self._current:  # no trial, but what seems best: without the round's luck
            gain = max(0.0, gain)
        elif not caught_up:
            gain = max(gain, -max(2 * plain, self._purse.spare))  # a long prompt must not cost an arm its trial
        self._purse.earn(seconds, gain, self.allowance, self.reinvest, most=20 * plain)

    def forget(self, rows: Sequence[Hashable]) -> None:
        self._rehearsal.forget(rows)
        self._beliefs.forget(rows)


def _rectangle(sizes: Sequence[int]) -> int:
    """Tokens that a forward computes which pads every row to the longest."""
    return len(sizes) * max(sizes)
