"""What rounds of one drafter and one tree took: their parts, and the whole."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median

from specplug import Round

FEWEST = 2  # with less nothing is said


@dataclass(slots=True)
class Rounds:
    """Timed rounds of one shape, in seconds. `own`: neither draft nor forward; `whole`: from one round's end to the next."""

    depth: int
    draft: list[float] = field(default_factory=list)
    verify: list[float] = field(default_factory=list)
    own: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    contexts: list[int] = field(default_factory=list)  # tokens in the longest row's cache

    def __len__(self) -> int:
        return len(self.draft)

    def add(self, finished: Round, whole: float | None = None) -> None:
        """One more round; without `whole` it took the sum of its parts."""
        seconds = finished.seconds
        self.draft.append(seconds.draft)
        self.verify.append(seconds.verify)
        self.own.append(seconds.total - seconds.draft - seconds.verify)
        self.whole.append(seconds.total if whole is None else whole)
        self.contexts.append(finished.batch.context)

    @property
    def steps(self) -> list[float]:
        """A draft's forward in each round."""
        return [seconds / self.depth for seconds in self.draft] if self.depth else []

    @property
    def rest(self) -> float:
        """The median of all but drafting."""
        return median(verify + own for verify, own in zip(self.verify, self.own, strict=True))
