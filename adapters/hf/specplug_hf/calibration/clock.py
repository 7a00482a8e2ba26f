"""The time that measuring may take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter


@dataclass
class Clock:
    """`seconds` from now on."""

    seconds: float
    now: Callable[[], float] = perf_counter
    start: float = field(init=False)

    def __post_init__(self) -> None:
        self.start = self.now()

    @property
    def spent(self) -> float:
        """Seconds since the start."""
        return self.now() - self.start

    @property
    def left(self) -> float:
        """Seconds left, not below 0."""
        return max(0.0, self.seconds - self.spent)

    @property
    def over(self) -> bool:
        """Whether there are none."""
        return self.left <= 0

    def part(self, share: float) -> Clock:
        """A clock from now on with a share of what is left."""
        return Clock(self.left * share, self.now)
