"""What was seen of single rows, and so what to expect of those that are there now.

Texts change as they grow: a lookup finds little at first and much once a row repeats itself; the rows that are left at the end of a
batch are those that were accepted least. What all rows and times have in common is therefore not what the next round will be like.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field

FADING = 0.92  # a row's round counts for so much of itself when its next one has been seen
YOUNG = 8.0  # trials of a row that say what rows are like at first
EARLY = 12.0  # trials that what all rows are like is worth for what young rows are like
BELIEF = 6.0  # trials that what young rows are like is worth for a row
FEW = 24.0  # of a few rows so many trials are as of all rows at any time: one row's luck is no news
LEAST = 0.01  # no rate is believed nearer to never or always


@dataclass(slots=True)
class RowAcceptance:
    """Trials and takes of first children, by row; and those of rows that nothing had been seen of before."""

    counts: dict[Hashable, tuple[float, float]] = field(default_factory=dict)
    young: dict[Hashable, float] = field(default_factory=dict)  # by row, trials so far, as long as it is young
    tried: float = 0.0  # of young rows
    taken: float = 0.0

    def observe(self, row: Hashable, tried: float, taken: float, fading: float) -> None:
        """A round's trials and takes of `row`. `fading`: of what earlier young rows said."""
        before = self.counts.get(row)
        age = 0.0 if before is None else self.young.get(row, YOUNG)
        if age < YOUNG:
            self.tried, self.taken = self.tried * fading + tried, self.taken * fading + taken
            self.young[row] = age + tried
        own = before or (0.0, 0.0)
        self.counts[row] = (own[0] * FADING + tried, own[1] * FADING + taken)

    def rate(self, row: Hashable, pooled: float, caution: float) -> float:
        """A row's own rate, as if `caution` trials had shown `pooled`; `pooled` for a row that nothing was seen of."""
        tried, taken = self.counts.get(row, (0.0, 0.0))
        return (taken + caution * pooled) / (tried + caution)

    def level(self, rows: Sequence[Hashable], pooled: float) -> float:
        """The rate of `rows` together, those that nothing was seen of as young ones are; `pooled`: of all rows at any time."""
        young = (self.taken + EARLY * pooled) / (self.tried + EARLY)
        own, more = BELIEF * len(rows), max(0.0, FEW - BELIEF * len(rows))
        tried, taken = own + more, own * young + more * pooled
        for row in rows:
            counts = self.counts.get(row, (0.0, 0.0))
            tried, taken = tried + counts[0], taken + counts[1]
        return taken / tried

    def familiar(self, rows: Sequence[Hashable]) -> float:
        """The share of `rows` that anything was seen of."""
        return sum(row in self.counts for row in rows) / len(rows)

    def forget(self, rows: Iterable[Hashable]) -> None:
        """These rows have left."""
        for row in rows:
            self.counts.pop(row, None)
            self.young.pop(row, None)


def odds_ratio(rate: float, other: float) -> float:
    """How many times the odds of `other` those of `rate` are."""
    return _odds(rate) / _odds(other)


def scaled(probability: float, ratio: float) -> float:
    """`probability` with `ratio` times its odds."""
    return probability * ratio / (1 - probability + probability * ratio)


def _odds(rate: float) -> float:
    bounded = min(1 - LEAST, max(LEAST, rate))
    return bounded / (1 - bounded)
