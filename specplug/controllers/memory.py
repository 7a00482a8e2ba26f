"""What controllers remember between generations: time and yield of each arm, by batch size and context."""

from __future__ import annotations

import threading
from collections.abc import Hashable
from dataclasses import dataclass, field


@dataclass(slots=True)
class Record:
    """One arm's measured rounds in one situation: exponential averages of seconds and of tokens (summed over rows)."""

    rounds: int = 0
    seconds: float = 0.0
    tokens: float = 0.0
    last_tried: int = 0  # the situation's round count when it was last tried

    def update(self, seconds: float, tokens: float, weight: float) -> None:
        share = max(weight, 1.0 / (self.rounds + 1))  # a plain mean first, then exponential
        self.seconds += share * (seconds - self.seconds)
        self.tokens += share * (tokens - self.tokens)
        self.rounds += 1

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return self.tokens / self.seconds if self.seconds > 0 else 0.0


@dataclass(slots=True)
class Situation:
    """All arms at about one batch size and context. `spare`: seconds that may be spent on trying things."""

    records: dict[str, Record] = field(default_factory=dict)
    rounds: int = 0
    seconds: float = 0.0
    spare: float = 0.0


class Memory:
    """Situations by key. Shared by the generations of one Speculator, also from several threads."""

    def __init__(self) -> None:
        self._situations: dict[Hashable, Situation] = {}
        self._lock = threading.Lock()

    def situation(self, key: Hashable) -> Situation:
        """The situation of `key`, created on first use."""
        with self._lock:
            return self._situations.setdefault(key, Situation())
