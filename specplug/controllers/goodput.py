"""`goodput`: as many expected tokens a second as can be had, from expected tokens over predicted time.

SmartSpec (arXiv 2406.14066): speculate as much as raises goodput, down to nothing. Sequoia's adaptive form: the tree's
size and depth that maximise G(n, d) / (T_target(n) + d T_draft), for the present batch and context. The acceptance is
learnt per drafter, by depth and rank (acceptance.py), the times by what rounds took (cost/online.py), so that a few
rounds with one tree say what any other tree of that drafter would yield and cost.

Drafters of which little is known, or nothing new, are tried now and then (trials.py), as far as what trying may lose is paid for.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import NamedTuple

from specplug.controllers.agenda import Agenda, Due
from specplug.controllers.base import Controller, Plan, Prediction
from specplug.controllers.beliefs import Beliefs
from specplug.controllers.calm import Calm
from specplug.controllers.ledger import Entry, Ledger, Terms
from specplug.controllers.memory import Memory
from specplug.controllers.offers import Offers
from specplug.controllers.option import Option, Standing, reason_to_try, situation_of, widest
from specplug.controllers.prices import Prices
from specplug.controllers.reading import Reading
from specplug.controllers.rehearsal import Rehearsal, Rehearsed
from specplug.controllers.rows import rectangle
from specplug.controllers.trees import Candidate
from specplug.controllers.trials import Trials
from specplug.host import Batch, Host
from specplug.outcome import Outcome, outcome_of
from specplug.round import Round
from specplug.tree import ROOT_ONLY

AHEAD = (
    3.0  # most times as long, and through as much bad luck, that a decision stands for its lead over what came second
)
SETTLING = 2  # a generation's first rounds, slower than those to come: nothing is warm yet


class Behind(NamedTuple):
    """A round that nobody has looked at yet. `unread`: tokens that its draft had to read: many, or 0."""

    outcome: Outcome
    draft_seconds: float
    unread: int


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
        self._beliefs = Beliefs(self._learnt.acceptance, self.arms)
        self._reading = Reading(self._learnt.reading, self.stake)
        padded: Callable[[Sequence[int]], int] = getattr(host, "padded_tokens", None) or rectangle
        self._by_row = padded((1, 3)) < rectangle((1, 3))  # rows of unequal size cost less than padded ones
        self._prices = Prices(self._learnt.cost, self.arms, padded)
        self._offers = Offers(self._beliefs, self._prices, self._reading, self._by_row, self._tree)
        terms = Terms(self.credit, self.allowance, self.reinvest)
        self._ledger = Ledger(self._learnt, self._beliefs, self._prices, self._reading, terms)
        self._thinking = self._learnt.thinking
        # a simulated host's time stands still while a controller thinks
        self._clock: Callable[[], float] = getattr(host, "clock", perf_counter)
        self._rehearsal = Rehearsal(self.arms, self._learnt.rehearsing)
        self._standing: Standing | None = None
        self._agenda = Agenda(self._learnt, self._beliefs)
        self._calm: Calm | None = None
        self._behind: list[Behind] = []
        self._finished = 0  # rounds of this generation
        self._warm: set[str] = set()  # arms whose caches have caught up in this generation
        self._trials = Trials(
            self._learnt,
            self._beliefs,
            self._prices,
            self._offers,
            self._worth,
            self._warm,
            self.patience,
            self.gamble,
        )

    def plan(self, batch: Batch) -> Plan:
        if self._calm is not None and self._calm.holds(batch):
            return self._calm.plan
        self._calm = None
        self._look_behind()
        situation = situation_of(batch)
        self._hear(situation, self._rehearsal.plan(batch, self._beliefs.of))
        standing = self._standing
        due = self._agenda.due(standing, batch, situation, self._rows(batch))
        if due is not Due.NOTHING:
            self._ledger.post()
            self._prices.look(batch.num_rows, batch.context, situation)
        if standing is not None and (due is Due.NOTHING or (due is Due.REVIEW and self._reviewed(standing, batch))):
            return self._begun(standing.planned(batch), standing.option, batch)
        tried, knows = self._prices.plain_tried(), self._prices.knows()
        if tried < (1 if knows else 2):  # loses nothing, and is what everything else is measured against
            seconds = self._prices.plain if tried or knows else None
            return Plan(self._baseline, ROOT_ONLY, predicted=Prediction("measures plain decoding", 1.0, seconds))
        begun = self._clock()
        option = self._look(batch, situation)
        self._thinking.spend(self._clock() - begun)
        return self._begun(option.plan(batch), option, batch)

    def _begun(self, plan: Plan, option: Option, batch: Batch) -> Plan:
        """`plan`, which is about to be followed; if its draft has to read first, a shorter one."""
        self._reading.begin(plan.arm, batch)
        if plan.arm.drafter.drafts_with_model and plan.arm.label not in self._warm:
            return option.catching_up(batch)
        if self._standing is not None and not self._rehearsal.begun:
            self._calm = self._agenda.calm(self._standing, batch, self._rehearsal.waits(plan.arm, batch))
        return plan

    def _rows(self, batch: Batch) -> Hashable:
        """For other ones, what was decided is reviewed: each has its own share of a tree, or there are only so many."""
        return batch.rows if self._by_row else batch.num_rows

    def _reviewed(self, standing: Standing, batch: Batch) -> bool:
        """Whether the arm that was decided for stands, with the tree that suits it by now; else all has to be looked at.

        Nothing was seen of the other arms since, but of those that were rehearsed.
        """
        option = self._offers.option(standing.option.arm, batch)
        heard = [found for arm in self._agenda.heard if (found := self._offers.option(arm, batch)) is not None]
        rivals = [standing.rival_now(self._prices.plain), *heard]
        if option is None or self._worth(option) * self.margin < max(map(self._worth, rivals)):
            return False
        self._agenda.reviewed()
        option = option._replace(reason=standing.option.reason)
        stale = self._learnt.rounds[standing.situation] + self._stands(option)
        standing.reviewed(self._rows(batch), option, self._beliefs.in_streaks(option.arm, batch), stale)
        return True

    def _look(self, batch: Batch, situation: Hashable) -> Option:
        """The best option, or what to try instead."""
        self._ledger.plain = self._prices.plain
        options = [option for arm in self.arms if (option := self._offers.option(arm, batch)) is not None]
        best, rival = self._best(options)
        trial = self._trials.choose(options, best, batch, situation)
        best = best._replace(reason=f"best of {len(options)}" if len(options) > 1 else "nothing else can pay here")
        streak = self._beliefs.in_streaks(best.arm, batch)
        now, rounds, lead = self._learnt.rounds[situation], self._stands(best), self._lead(best, rival, batch)
        self._standing = Standing(
            situation=situation,
            rows=self._rows(batch),
            until=now + int(lead * rounds),
            stale=now + rounds,
            option=best._replace(reason=f"{best.reason}, at the last look"),
            streak=streak,
            rival=rival,
            plain=self._prices.plain,
            lead=lead,
        )
        self._agenda.looked(tries=trial is not None)
        return best if trial is None else trial._replace(reason=reason_to_try(trial))

    def _stands(self, best: Option) -> int:
        """Rounds until its tree is looked at again, and everything else, if nothing is far ahead: few while little is known of the best."""
        return self.interval if best.arm is self._baseline else max(1, min(self.interval, int(best.samples / 2)))

    def _lead(self, best: Option, rival: Option, batch: Batch) -> float:
        """How many times as good as what came second the best is, as far as these rows are known."""
        drafting = rival if best.arm is self._baseline else best
        ahead = max(1.0, self._worth(best) / self._worth(rival)) - 1
        return 1 + min(AHEAD - 1, ahead) * self._beliefs.familiar(drafting.arm, batch)

    def _best(self, options: list[Option]) -> tuple[Option, Option]:
        """The best option for all that is known, and the second best; the same twice if there is no other."""
        current = None if self._standing is None else self._standing.option.arm

        def worth(option: Option) -> float:
            held = option.arm is current or option.arm is self._baseline
            return self._worth(option) * (self.margin if held else 1.0)

        known = [option for option in options if option.arm is self._baseline or option.samples]
        best = max(reversed(known), key=worth)  # plain decoding stands last and wins ties
        return best, max((option for option in known if option is not best), key=worth, default=best)

    def _tree(self, priced: Sequence[tuple[float, Candidate]]) -> tuple[float, Candidate]:
        """The best of one drafter's trees, with the seconds of a round."""
        return max(priced, key=lambda p: p[1].tokens / p[0])

    def _worth(self, option: Option) -> float:
        """What is compared between drafters, plain decoding included."""
        return option.rate

    def observe(self, finished: Round) -> None:
        outcome = outcome_of(finished)
        self._behind.append(Behind(outcome, finished.seconds.draft, self._reading.end()))
        if self._calm is not None and not self._calm.goes_on(outcome):
            self._calm = None

    def _look_behind(self) -> None:
        """Follow the rounds since the last look behind."""
        behind, self._behind = self._behind, []
        for outcome, draft_seconds, unread in behind:
            self._follow(outcome, draft_seconds, unread)

    def _follow(self, outcome: Outcome, draft_seconds: float, unread: int) -> None:
        """What matters for when to think again is known at once, the rest is written down."""
        arm, standing = outcome.plan.arm, self._standing
        situation = situation_of(outcome)
        self._learnt.tick(situation, arm.label)
        self._thinking.earn(outcome.seconds, self.thought)
        self._agenda.follow(outcome)
        self._hear(situation, self._rehearsal.observe(outcome, self._beliefs.of))
        self._beliefs.follow(outcome)
        entry = Entry(
            outcome,
            situation,
            best=standing is not None and standing.option.arm is arm,
            caught_up=arm.label in self._warm or not arm.drafter.drafts_with_model,
            settling=self._finished < SETTLING,
            unread=unread,
            draft_seconds=draft_seconds,
        )
        self._ledger.enter(entry)
        self._warm.add(arm.label)
        self._finished += 1

    def _hear(self, situation: Hashable, rehearsed: Sequence[Rehearsed]) -> None:
        for arm, better in rehearsed:
            self._learnt.look(situation, arm.label)
            if better:  # what did worse than was believed does not take over
                self._agenda.heard.append(arm)

    def forget(self, rows: Sequence[Hashable]) -> None:
        self._calm = None
        self._look_behind()
        self._ledger.post()
        self._rehearsal.forget(rows)
        self._beliefs.forget(rows)
