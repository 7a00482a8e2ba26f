"""Machines to simulate: what a forward really takes, from a roofline that is bent, or from what was measured.

`Bent` is no measurement. It is the roofline (cost/roofline.py) with the overheads that MagicDec's published rows fit
(cost/magicdec.py), and with what no model of ours has: matrix products in whole tiles of tokens, a step where a
vector becomes a matrix, attention that reaches less of the bandwidth while little is in flight, and an error of its own
at every point of the grid. `Measured` is a profile's samples: the fit, times what the nearest samples say beside it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from specplug.cost.base import Load
from specplug.cost.fitted import TARGET, FittedCost, Sample
from specplug.cost.profile import Profile
from specplug.cost.roofline import NO_MODEL, Roofline
from specplug.errors import OptionError

FINE, COARSE = 8, 64  # tokens of a tile: of small matrix products, and of those over COARSE tokens
PRODUCT, WIDE = 1.06, 1.10  # what it takes longer that there are 2 tokens a row and not 1; more than 16
IN_FLIGHT = 4096.0  # cached tokens of the batch at which attention reaches half of its bandwidth
RAGGED = 0.03  # standard deviation of the logarithm of a point's own error
COUNTED = 1024  # tokens that the overhead a token is charged for: it was fitted on rounds of at most 640
NEAR = 4  # measured points that a point between them heeds


class Machine(Protocol):
    """Seconds of one forward of a part: `target`, or a drafter's name."""

    def seconds(self, part: str, load: Load) -> float:
        """0 for a drafter that runs no model."""
        ...

    def overhead(self, rows: int) -> float:
        """Seconds of a round of `rows` rows besides forwards."""
        ...


@dataclass(frozen=True, slots=True)
class Bent:
    """`seed` decides the points' own errors: another seed is another machine of the kind."""

    roofline: Roofline
    seed: int = 0

    def seconds(self, part: str, load: Load) -> float:
        if part in NO_MODEL:
            return 0.0
        tile = FINE if load.tokens <= COARSE else COARSE
        tokens = load.tokens if load.tokens == 1 else math.ceil(load.tokens / tile) * tile
        busy = Load(load.rows, tokens, load.context + round(IN_FLIGHT * load.context / (load.context + IN_FLIGHT)))
        width = load.tokens / load.rows
        factor = (PRODUCT if width > 1 else 1.0) * (WIDE if width > 16 else 1.0)
        model = self.roofline
        smooth = model.target(busy) if part == TARGET else model.draft(part, busy)
        shape = model.drafts.get(part, model.target_shape)
        smooth -= shape.layers * model.overheads.token * max(0, tokens - COUNTED)
        own = random.Random(f"{self.seed}/{part}/{load.rows}/{load.tokens}/{load.context}").gauss(0.0, RAGGED)
        return smooth * factor * math.exp(own)

    def overhead(self, rows: int) -> float:
        return self.roofline.overhead(rows)


@dataclass(frozen=True, slots=True)
class Measured:
    """What a profile measured. Raises `OptionError` for a part that it did not."""

    cost: FittedCost
    samples: Mapping[str, Sequence[tuple[tuple[float, float, float], float]]]  # by part: where, and log(measured / fit)

    @classmethod
    def of(cls, profile: Profile) -> Measured:
        """The machine that `profile` was measured on."""
        found: dict[str, list[tuple[tuple[float, float, float], float]]] = {}
        for sample in profile.samples:
            fitted = _fitted(profile.cost, sample.part, sample.load)
            found.setdefault(sample.part, []).append((_where(sample.load), _error(sample, fitted)))
        return cls(profile.cost, found)

    def seconds(self, part: str, load: Load) -> float:
        if part in NO_MODEL:
            return 0.0
        fitted = _fitted(self.cost, part, load)
        here = _where(load)
        near = sorted((math.dist(here, there), error) for there, error in self.samples.get(part, ()))[:NEAR]
        weights = [1 / (distance + 1e-6) ** 2 for distance, _ in near]
        if not near:
            return fitted
        mean = sum(w * error for w, (_, error) in zip(weights, near, strict=True)) / sum(weights)
        return fitted * math.exp(mean)

    def overhead(self, rows: int) -> float:
        return self.cost.overhead(rows)


def _fitted(cost: FittedCost, part: str, load: Load) -> float:
    if part not in cost.coefficients:
        known = ", ".join(sorted(cost.coefficients))
        raise OptionError(f"The profile has no times of {part!r}; it has: {known}.")
    return max(cost._seconds(part, load), 1e-9)


def _error(sample: Sample, fitted: float) -> float:
    return math.log(max(sample.seconds, 1e-9) / fitted)


def _where(load: Load) -> tuple[float, float, float]:
    """Batch, nodes a row and context a row, in octaves."""
    return math.log2(load.rows), math.log2(load.tokens / load.rows), math.log2(max(1.0, load.context / load.rows))
