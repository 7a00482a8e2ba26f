"""What a planner may lose by trying: a small share of the time spent, and a share of what speculation gained."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Purse:
    """`spare`: seconds that may still be spent on trials; None before plain decoding was measured."""

    spare: float | None = None

    def earn(self, seconds: float, gain: float, allowance: float, reinvest: float, most: float) -> None:
        """A round of `seconds` gained `gain` seconds against plain decoding (negative: lost)."""
        earned = allowance * seconds + min(gain, reinvest * seconds)
        self.spare = min((self.spare or 0.0) + earned, most)

    def affords(self, loss: float) -> bool:
        return loss <= (self.spare or 0.0)
