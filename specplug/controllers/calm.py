"""A calm: rounds in which nothing is thought of. What was decided stands, and what rounds teach is written down only.

Behind a forward, whose weights have driven everything else out of the processor's caches, every function that is called and every
object that is read costs some ten times what it costs by itself. So most rounds ask this one object, before them and behind them.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from specplug.controllers.base import Plan
from specplug.host import Batch
from specplug.outcome import Outcome


@dataclass(slots=True)
class Calm:
    """The same `plan` for the same `rows`, as long as nothing happens that could change it.

    `rounds` that may still come. `context`: tokens in the cache, from which on rounds are others. `luck`: tokens a row that rounds may
    still yield less than the `expected`. `streak`: whether all rows are in a streak; None if that changes nothing. `tokens` that
    may still be written before another drafter is to be rehearsed; None: there is none.
    """

    plan: Plan
    rows: tuple[Hashable, ...]
    sampling: bool
    context: int
    rounds: int
    expected: float
    luck: float
    streak: bool | None
    tokens: int | None

    def holds(self, batch: Batch) -> bool:
        """Whether the next round, of `batch`, is one more of it."""
        self.rounds -= 1
        return (
            self.rounds >= 0
            and batch.context < self.context
            and batch.room > self.plan.shape.depth
            and batch.rows == self.rows
            and batch.sampling == self.sampling
        )

    def goes_on(self, outcome: Outcome) -> bool:
        """Whether there may be a next one, behind a round."""
        counts = outcome.counts
        self.luck += sum(counts) / len(counts) - self.expected
        if self.tokens is not None:
            self.tokens -= max(counts)
            if self.tokens <= 0:
                return False
        return self.luck >= 0 and (self.streak is None or all(outcome.whole) == self.streak)
