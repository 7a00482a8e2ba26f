"""Factors on predicted times, as logarithms that are learnt round by round."""

from __future__ import annotations

import math
from dataclasses import dataclass

SURPRISE = 0.5  # most that one round may move a correction by, in the logarithm: hiccups are not news
MOST = 4.0  # no factor is believed beyond e to this: a part that costs nothing must be able to come back


@dataclass(slots=True)
class Correction:
    """A factor's logarithm, and how many rounds it was learnt from."""

    value: float = 0.0
    seen: int = 0
    stands_in: bool = False

    def stand_in(self, surprise: float) -> None:
        """As long as nothing better was seen, the least of what was seen counts; later nothing of it is kept."""
        if not self.seen and (surprise < 0 or not self.stands_in):
            self.value, self.stands_in = self.value + surprise, True

    def at_most(self, surprise: float) -> None:
        """What takes no less than this would was seen to take less, if `surprise` is negative."""
        if surprise < 0:
            self.value += 0.25 * max(-SURPRISE, surprise)

    def learn(self, surprise: float, slowest: float, belief: float = 1.0) -> None:
        """Move by a share of `surprise`: at first as if the start were worth `belief` rounds, later by at least `slowest`."""
        bounded = surprise if self.seen < 2 else max(-SURPRISE, min(SURPRISE, surprise))
        self.seen += 1
        self.value += max(slowest, 1 / (self.seen + belief)) * bounded


@dataclass(slots=True)
class Factor:
    """A factor's logarithm, with how much of it is doubt: the state of a scalar Kalman filter."""

    value: float = 0.0
    variance: float = 0.5
    least: float = 0.002  # variance that it keeps: times change

    def times(self, doubt: float) -> float:
        """The factor; one above 1 counts the less, the more it is doubted."""
        return math.exp(self.value * (1 - doubt) if self.value > 0 else self.value)

    def learn(self, surprise: float, share: float, variance: float) -> None:
        """Move by its part in `surprise`: the logarithm of a total to which it contributes `share`, of `variance` in all."""
        gain = self.variance * share / variance
        self.value = max(-MOST, min(MOST, self.value + gain * surprise))
        self.variance = max(self.least, self.variance * (1 - gain * share))
