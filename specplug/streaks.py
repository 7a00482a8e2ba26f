"""Streaks: rows whose last proposal was accepted whole, and how well it goes on for them.

A text that copies an earlier passage, or goes round in a loop, agrees with a lookup for a while and then no more: what was accepted
just now says more of the next tokens than what is accepted on average.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field

from specplug.outcome import Outcome


@dataclass(slots=True)
class Streaks:
    """Of one drafter's chains. Counts fade like `Acceptance`'s; `weight`: how many trials the rate of all rows is worth."""

    weight: float = 4.0
    rows: set[Hashable] = field(default_factory=set)  # those in a streak now
    tried: float = 0.0  # tokens for rows in a streak, up to the first that was refused
    taken: float = 0.0

    def observe(self, outcome: Outcome, fading: float) -> None:
        """Count what became of the chains of rows in a streak, then look anew who is in one."""
        self.tried, self.taken = self.tried * fading, self.taken * fading
        depth = outcome.plan.shape.depth
        for row, taken, whole in zip(outcome.rows, outcome.accepted, outcome.whole, strict=True):
            if row in self.rows:
                self.tried += taken + (taken < depth)  # what proposed less has failed where it stopped
                self.taken += taken
            (self.rows.add if whole else self.rows.discard)(row)

    def hold(self, rows: Sequence[Hashable]) -> bool:
        """Whether all of `rows` are in one. A tree is as deep for the others too, and for them it would be too deep."""
        return self.rows.issuperset(rows)

    def tokens(self, of_all: float, length: int) -> float:
        """Expected tokens of a row in a streak with a chain of `length`, the bonus included; `of_all`: any row's acceptance."""
        rate = (self.taken + self.weight * of_all) / (self.tried + self.weight)
        return sum(rate**depth for depth in range(length + 1))

    def end(self) -> None:
        """Another drafter has gone on with the texts: nothing is known of how this one would have done."""
        self.rows.clear()

    def forget(self, rows: Iterable[Hashable]) -> None:
        """These rows have left."""
        self.rows.difference_update(rows)
