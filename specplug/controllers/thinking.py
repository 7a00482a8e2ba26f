"""What a planner may spend on planning, or on rehearsals: a small share of the time that rounds take."""

from __future__ import annotations

from dataclasses import dataclass

BURST = 4.0  # looks that may have been saved up: a new text needs some at once


@dataclass(slots=True)
class Thinking:
    """`spare`: seconds that may still be spent on looks, at all options or at how a drafter would have done. Outlives a generation, so
    that the next one can begin with some: little is known of its text then."""

    spare: float = 0.0
    last: float = 0.0  # seconds that the last look took

    def earn(self, seconds: float, share: float) -> None:
        """A round took so long, of which a `share` may go into looks."""
        self.spare = min(self.spare + share * seconds, BURST * self.last)

    def spend(self, seconds: float) -> None:
        """A look took so long."""
        self.spare, self.last = self.spare - seconds, seconds

    @property
    def affords(self) -> bool:
        """Whether another look is paid for; until then what was decided stands."""
        return self.spare >= 0
