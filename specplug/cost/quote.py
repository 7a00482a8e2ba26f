"""A quote: the prices of rounds that are alike but for their trees, for what is known now."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from specplug.cost.base import CostModel, Load
from specplug.cost.factors import Factor
from specplug.cost.scale import Scale

PECULIAR = 0.01  # variance of what a kind of round takes over the sum of its parts


class Parts(NamedTuple):
    """Seconds of a round's parts, their factors included."""

    plain: float
    tree: float
    further: float
    draft: float


class Base:
    """What `prior` says of rounds like `work`, in units of its own: many trees have as many nodes, or levels as wide."""

    __slots__ = ("_forwards", "_verifies", "plain", "prior", "single", "work")

    def __init__(self, prior: CostModel, work: Scale) -> None:
        self.prior, self.work = prior, work
        self.single = prior.target(Load(work.rows, work.rows, work.context))
        self.plain = self.single + prior.overhead(work.rows)
        self._verifies: dict[int, float] = {}
        self._forwards: dict[int, float] = {}

    def further(self, nodes: int) -> float:
        """What verifying `nodes` over all rows takes beside a plain forward."""
        found = self._verifies.get(nodes)
        if found is None:
            more = self.prior.target(Load(self.work.rows, nodes, self.work.context)) - self.single
            found = self._verifies[nodes] = max(0.0, more)
        return found

    def draft(self, nodes: int, depth: int) -> float:
        """`depth` forwards of the draft, for so many nodes."""
        widest = self.work.widest(nodes, depth)
        found = self._forwards.get(widest)
        if found is None:
            found = self._forwards[widest] = self.prior.draft(self.work.drafter, self.work.level(widest))
        return depth * found


@dataclass(slots=True)
class Kind:
    """What is known of one kind of round: how often it was measured, and what it takes beside the sum of its parts."""

    seen: int = 0
    factor: Factor = field(default_factory=lambda: Factor(variance=PECULIAR, least=0.0005))


class Quote(NamedTuple):
    """`base` in seconds: `scale` for everything, `tree` for a tree's being there, `further` and `level` on each further node and
    on the draft's forwards. `doubt`: see `OnlineCost.quote`."""

    base: Base
    scale: float
    tree: float
    further: float
    level: float
    kinds: Mapping[tuple[str, int, int], Kind]
    doubt: float

    @property
    def plain(self) -> float:
        """What plain decoding of the rows takes."""
        return self.scale * self.base.plain

    def parts(self, nodes: int, depth: int) -> Parts:
        """Of a round that verifies `nodes` over all rows, behind `depth` forwards of the draft."""
        plain = self.plain
        return Parts(plain, *self._beside(plain, nodes, depth))

    def seconds(self, nodes: int, depth: int) -> float:
        """Of such a round as a whole, with what its kind takes beside the sum of its parts."""
        return self.seconds_of([(nodes, depth)])[0]

    def seconds_of(self, rounds: Iterable[tuple[int, int]]) -> list[float]:
        """`seconds` of each of these, by nodes and depth."""
        plain, work, kinds, found = self.plain, self.base.work, self.kinds, []
        drafter, rows, believed = work.drafter, work.rows, 1 - self.doubt
        for nodes, depth in rounds:
            total = plain + sum(self._beside(plain, nodes, depth))
            kind = kinds.get((drafter, round(nodes / rows), depth))
            found.append(total if kind is None else total * math.exp(kind.factor.value * believed))
        return found

    def _beside(self, plain: float, nodes: int, depth: int) -> tuple[float, float, float]:
        """What a tree takes beside plain decoding: as it is there, as it has so many nodes, and to be drafted."""
        base = self.base
        if nodes == base.work.rows:
            return 0.0, 0.0, 0.0
        drafting = self.level * base.draft(nodes, depth) if depth else 0.0
        return self.tree * plain, self.further * base.further(nodes), drafting
