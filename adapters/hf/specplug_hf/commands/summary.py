"""Medians, quartiles and paired ratios of samples."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from specplug_hf.commands.measure import Sample


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and quartiles of `n` values."""

    median: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Of at least one value."""
        listed = sorted(values)
        if len(listed) == 1:
            return cls(listed[0], listed[0], listed[0], 1)
        low, middle, high = statistics.quantiles(listed, n=4, method="inclusive")
        return cls(middle, low, high, len(listed))

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    def text(self, digits: int = 2) -> str:
        """`1.93 [1.88-2.01]`."""
        return f"{self.median:.{digits}f} [{self.low:.{digits}f}-{self.high:.{digits}f}]"


@dataclass(frozen=True, slots=True)
class Row:
    """One contender in one case. Rates in tokens a second over all rows of the batch."""

    contender: str
    option: str
    rate: Spread
    prefill_seconds: Spread
    call_rate: Spread  # new tokens over the whole call, prompt included
    accepted_length: float | None

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def row(samples: Sequence[Sample]) -> Row:
    """Summary of one contender's samples."""
    rounds = sum(s.stats.row_rounds for s in samples if s.stats)
    emitted = sum(s.stats.emitted for s in samples if s.stats)
    return Row(
        contender=samples[0].contender,
        option=samples[0].option,
        rate=Spread.of(s.rate for s in samples),
        prefill_seconds=Spread.of(s.prefill_seconds for s in samples),
        call_rate=Spread.of(s.tokens / s.seconds for s in samples),
        accepted_length=emitted / rounds if rounds else None,
    )


def by_contender(samples: Iterable[Sample]) -> dict[str, list[Sample]]:
    """Samples by contender, in order of first appearance."""
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.contender, []).append(sample)
    return groups


def paired(
    samples: Sequence[Sample], ours: str, against: str, value: Callable[[Sample], float] = lambda s: s.rate
) -> Spread | None:
    """Ratio of `ours` to `against` on the same prompt in the same turn; None if either is missing."""
    groups = by_contender(samples)
    others = {(s.batch, s.repeat): value(s) for s in groups.get(against, [])}
    ratios = [
        value(s) / others[s.batch, s.repeat] for s in groups.get(ours, []) if others.get((s.batch, s.repeat), 0.0) > 0
    ]
    return Spread.of(ratios) if ratios else None


def better_of(samples: Sequence[Sample], names: Sequence[str]) -> str | None:
    """Which of `names` has the highest median rate; None if none was measured."""
    groups = by_contender(samples)
    present = [name for name in names if name in groups]
    if not present:
        return None
    return max(present, key=lambda name: statistics.median(s.rate for s in groups[name]))
