"""A cost model fitted to measured times: T_target(B, total KV, N), T_draft(B, budget, N), overhead(B).

Coefficients are not negative and features do not fall with the load, so neither does what is predicted. SmartSpec
(arXiv 2406.14066, section 4.2) fits its times on the same quantities.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from specplug.cost.base import Load
from specplug.cost.least_squares import fit_nonnegative
from specplug.errors import OptionError

TARGET, OVERHEAD = "target", "overhead"
HINGES = (8, 32, 128)  # tokens from which on arithmetic may begin to cost


@dataclass(frozen=True, slots=True)
class Sample:
    """One measured time. `part`: "target", "overhead" or a drafter's name."""

    part: str
    load: Load
    seconds: float


def features(load: Load) -> tuple[float, ...]:
    """What a forward's time is made of: launches and weights, rows, tokens, KV read, pairs scored, arithmetic.

    `1 - 1/tokens` is the step from one token, a matrix times a vector, to several, a matrix product.
    """
    tokens = load.tokens
    hinges = (max(0.0, tokens - hinge) for hinge in HINGES)
    return 1.0, float(load.rows), float(tokens), float(load.context), load.pairs, 1 - 1 / tokens, *hinges


@dataclass(frozen=True, slots=True)
class FittedCost:
    """`coefficients`: by part, one for each feature; seconds."""

    coefficients: Mapping[str, Sequence[float]]

    def target(self, load: Load) -> float:
        return self._seconds(TARGET, load)

    def draft(self, drafter: str, load: Load) -> float:
        if drafter not in self.coefficients:
            known = sorted(set(self.coefficients) - {TARGET, OVERHEAD})
            raise OptionError(
                f"No times of drafter {drafter!r} were measured; there are: {', '.join(known) or 'none'}."
            )
        return self._seconds(drafter, load)

    def overhead(self, rows: int) -> float:
        return self._seconds(OVERHEAD, Load(rows, rows, 0)) if OVERHEAD in self.coefficients else 0.0

    def _seconds(self, part: str, load: Load) -> float:
        return sum(c * f for c, f in zip(self.coefficients[part], features(load), strict=True))


def fit(samples: Sequence[Sample]) -> FittedCost:
    """Fit every part of `samples`. Raises `OptionError` without a sample of the target."""
    parts = sorted({sample.part for sample in samples})
    if TARGET not in parts:
        raise OptionError("No time of the target was measured; a cost model needs some.")
    return FittedCost({part: _fit_part([s for s in samples if s.part == part]) for part in parts})


def _fit_part(samples: Sequence[Sample]) -> tuple[float, ...]:
    return tuple(fit_nonnegative([features(s.load) for s in samples], [max(s.seconds, 1e-9) for s in samples]))


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Relative errors of predictions for loads that were left out of the fit."""

    median: float
    worst: float


def held_out(samples: Sequence[Sample], folds: int = 5) -> dict[str, HeldOut]:
    """By part: every load is predicted once by a fit without it."""
    found = {}
    for part in sorted({sample.part for sample in samples}):
        mine = [sample for sample in samples if sample.part == part]
        loads = sorted({s.load for s in mine}, key=lambda load: (load.rows, load.tokens, load.context))
        if len(loads) < 2:
            continue
        errors = []
        for fold in range(min(folds, len(loads))):
            left_out = set(loads[fold::folds])
            model = FittedCost({part: _fit_part([s for s in mine if s.load not in left_out])})
            errors += [abs(model._seconds(part, s.load) / s.seconds - 1) for s in mine if s.load in left_out]
        found[part] = HeldOut(statistics.median(errors), max(errors))
    return found
