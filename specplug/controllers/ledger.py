"""What rounds teach a planner, written down while they run and learnt from when it next looks.

Right behind a forward, whose weights have driven everything else out of the processor's caches, learning from a round takes
some three times as long as right behind learning from another one. What is learnt is only asked for by looks, every few rounds.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from specplug.controllers.beliefs import Beliefs
from specplug.controllers.memory import Learnt
from specplug.controllers.prices import ABOUT, Prices
from specplug.controllers.reading import Reading
from specplug.outcome import Outcome


class Entry(NamedTuple):
    """One round. `best`: what seemed best drafted, and no trial. `caught_up`: its draft had read everything before."""

    outcome: Outcome
    situation: Hashable
    best: bool
    caught_up: bool
    settling: bool  # see `OnlineCost.observe`
    unread: int  # tokens that its draft had to read: many, or 0
    draft_seconds: float


@dataclass(frozen=True, slots=True)
class Terms:
    """What trying may lose: see `Goodput`."""

    credit: float
    allowance: float
    reinvest: float


class Ledger:
    """Rounds that nothing was learnt from yet. `plain`: seconds of a plain round, at the last look or when first known."""

    def __init__(self, learnt: Learnt, beliefs: Beliefs, prices: Prices, reading: Reading, terms: Terms) -> None:
        self._learnt, self._beliefs, self._prices, self._reading, self._terms = learnt, beliefs, prices, reading, terms
        self._entries: list[Entry] = []
        self.plain: float | None = None

    def enter(self, entry: Entry) -> None:
        """Write a round down."""
        self._entries.append(entry)

    def post(self) -> None:
        """Learn from what was written down, in its order."""
        entries, self._entries = self._entries, []
        for _, alike in groupby(entries, _likeness):
            self._post(list(alike))

    def _post(self, entries: Sequence[Entry]) -> None:
        """Learn from rounds that are alike in all but their luck."""
        first, outcomes = entries[0], [entry.outcome for entry in entries]
        outcome, arm = first.outcome, first.outcome.plan.arm
        self._prices.look(outcome.num_rows, outcome.context, first.situation)
        self._settle(entries)
        if outcome.plan.shape.size:
            self._beliefs.of(arm, outcome.sampling).observe(*outcomes)
        if first.unread:
            forward, depth = self._prices.forward(arm), outcome.plan.shape.depth
            for entry in entries:
                self._reading.learn(arm, entry.unread, entry.draft_seconds, forward, depth)
        elif first.caught_up:
            self._prices.observe(outcomes, first.settling)
        else:
            self._learnt.warming[arm.label] = self._prices.excess(outcomes[-1])

    def _settle(self, entries: Sequence[Entry]) -> None:
        """Book what the rounds gained or lost against plain decoding."""
        purse, terms = self._learnt.purse, self._terms
        if self.plain is None:
            if not self._prices.plain_tried():
                return
            self.plain = self._prices.plain
        plain = self.plain
        if purse.spare is None:
            purse.spare = terms.credit * plain
        for entry in entries:
            outcome, seconds = entry.outcome, entry.outcome.seconds
            gain = sum(outcome.counts) / outcome.num_rows * plain - seconds if outcome.plan.shape.size else 0.0
            if entry.best:
                gain = max(0.0, gain)  # without the round's luck
            elif not entry.caught_up:
                gain = max(gain, -max(2 * plain, purse.spare))  # a long prompt must not cost an arm its trial
            purse.earn(seconds, gain, terms.allowance, terms.reinvest, most=20 * plain)


def _likeness(entry: Entry) -> tuple[object, ...]:
    """Rounds in a row for which this is equal are learnt from together."""
    outcome, plan = entry.outcome, entry.outcome.plan
    kind = plan.arm.label, plan.shape, plan.sizes, outcome.nodes, outcome.rows, outcome.sampling
    return *kind, outcome.context // ABOUT, entry.situation, entry.best, entry.caught_up, entry.settling, entry.unread
