"""A share of trials that come in texts, and how far it can be trusted."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import NormalDist, fmean, stdev

Interval = tuple[float, float]

FEWEST_TEXTS = 3  # below that there is no saying how much texts differ
LEVEL = 0.95


@dataclass(slots=True)
class Share:
    """Trials and successes by text: tokens of one text resemble each other, so what there is to trust is the texts."""

    texts: dict[int, list[int]] = field(default_factory=dict)  # [trials, successes]

    def add(self, text: int, success: bool) -> None:
        """Count one trial of a text."""
        counts = self.texts.setdefault(text, [0, 0])
        counts[0] += 1
        counts[1] += bool(success)

    @property
    def trials(self) -> int:
        """Of all texts."""
        return sum(trials for trials, _ in self.texts.values())

    @property
    def successes(self) -> int:
        """Of all texts."""
        return sum(successes for _, successes in self.texts.values())

    @property
    def value(self) -> float:
        """Share of successes; NaN where there are no trials."""
        return self.successes / self.trials if self.trials else math.nan

    @property
    def effective_trials(self) -> float:
        """Independent trials that would tell as much (Kish's design effect, from how the texts differ); at most `trials`."""
        value, trials, texts = self.value, self.trials, len(self.texts)
        if not 0 < value < 1 or texts < 2:
            return float(trials)
        spread = sum((good - value * tried) ** 2 for tried, good in self.texts.values()) / trials**2
        variance = spread * texts / (texts - 1)
        return min(float(trials), value * (1 - value) / variance) if variance else float(trials)

    @property
    def interval(self) -> Interval | None:
        """Wilson's, of `LEVEL`, for the effective trials and with Student's quantile (Korn and Graubard 1998); None: too few texts."""
        texts = len(self.texts)
        if texts < FEWEST_TEXTS or not self.trials:
            return None
        n, p, t = self.effective_trials, self.value, student(texts - 1)
        middle = (p + t * t / (2 * n)) / (1 + t * t / n)
        half = t / (1 + t * t / n) * math.sqrt(p * (1 - p) / n + t * t / (4 * n * n))
        return max(0.0, middle - half), min(1.0, middle + half)


@dataclass(frozen=True, slots=True)
class Difference:
    """Of two shares on the same texts: its mean over the texts, with Student's interval of `LEVEL` (None: too few texts)."""

    mean: float
    interval: Interval | None


def difference(one: Share, other: Share) -> Difference | None:
    """How much higher `one` is, text by text; None: they have no text in common."""
    common = [text for text in one.texts if text in other.texts]
    gaps = [_of(one.texts[text]) - _of(other.texts[text]) for text in common]
    if len(gaps) < FEWEST_TEXTS:
        return Difference(fmean(gaps), None) if gaps else None
    mean, half = fmean(gaps), student(len(gaps) - 1) * stdev(gaps) / math.sqrt(len(gaps))
    return Difference(mean, (mean - half, mean + half))


def _of(counts: list[int]) -> float:
    return counts[1] / counts[0]


def student(degrees: int) -> float:
    """Two-sided quantile of Student's t at `LEVEL` for `degrees` of freedom, 2 or more: exact for 2, Cornish-Fisher from 3 on.

    Off by 0.024 at 3, by less than 0.01 from 4 on.
    """
    if degrees == 2:
        return LEVEL * math.sqrt(2 / (1 - LEVEL**2))
    z = NormalDist().inv_cdf(0.5 + LEVEL / 2)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return sum(term / degrees**power for power, term in enumerate(terms))
