"""What controllers remember between generations: time and yield of each arm, by batch size and context."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field

WINDOW = 25  # rounds whose median is an arm's time


@dataclass(slots=True)
class Record:
    """One arm's measured rounds in one situation."""

    samples: int = 0  # rows and rounds that were measured
    tokens: float = 0.0  # tokens a row and round, exponential average
    seconds: float = 0.0  # of a round: lower median of the last few, so that a hiccup does not count
    last_tried: int = 0  # the situation's round count when it was last tried
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))

    def update(self, seconds: float, tokens: float, rows: int, weight: float) -> None:
        """Add a round of `rows` rows that yielded `tokens` a row."""
        self.recent.append(max(seconds, 1e-9))  # a coarse clock may say 0
        self.seconds = sorted(self.recent)[(len(self.recent) - 1) // 2]
        share = max(weight, rows / (self.samples + rows))  # a plain mean first, then exponential
        self.tokens += share * (tokens - self.tokens)
        self.samples += rows

    @property
    def rate(self) -> float:
        """Tokens a row and second, drawn a little towards one token a round while little was measured."""
        shrunk = (self.tokens * self.samples + 1.0) / (self.samples + 1)
        return shrunk / self.seconds if self.samples else 0.0

    def aged(self) -> Record:
        """What it says about a neighbouring situation: a starting point, soon overruled by measurements there."""
        return Record(min(self.samples, 3), self.tokens, self.seconds, 0, deque([self.seconds], maxlen=WINDOW))


@dataclass(slots=True)
class Situation:
    """All arms at about one batch size and context."""

    records: dict[str, Record] = field(default_factory=dict)
    rounds: int = 0
    inherited: bool = False  # started from a neighbour's records


@dataclass(slots=True)
class Ledger:
    """`spare`: seconds that may still be spent on trying arms; None before plain decoding was measured.

    `reading`: seconds a token that a drafter's model takes to read what it has missed.
    """

    spare: float | None = None
    reading: dict[str, float] = field(default_factory=dict)


class Memory:
    """Situations and ledgers by host. Shared by the generations of one Speculator, also from several threads.

    Two threads may overwrite each other's newest measurement; nothing worse.
    """

    def __init__(self) -> None:
        self._situations: dict[tuple[Hashable, int, int], Situation] = {}
        self._ledgers: dict[Hashable, Ledger] = {}
        self._lock = threading.Lock()

    def situation(self, host: Hashable, rows: int, context: int) -> Situation:
        """The situation of a host's batches of about `rows` rows (bit length) and `context` tokens (bit length).

        A new one starts from what is known of the nearest.
        """
        key = (host, rows, context)
        found = self._situations.get(key)
        if found is None:
            with self._lock:
                near = [k for k in self._situations if k[0] == host]
                nearest = min(near, key=lambda k: abs(k[1] - rows) + abs(k[2] - context), default=None)
                records = {} if nearest is None else dict(self._situations[nearest].records)
                aged = {label: record.aged() for label, record in records.items() if record.samples}
                found = self._situations.setdefault(key, Situation(aged, inherited=bool(aged)))
        return found

    def ledger(self, host: Hashable) -> Ledger:
        """The ledger of a host, created on first use."""
        with self._lock:
            return self._ledgers.setdefault(host, Ledger())
