"""A cost model that corrects itself by the rounds it sees: what a controller plans with.

Predictions come from another model (a profile's, or a guess by shape) times corrections that are learnt in the
logarithm: one for the situation (batch and context), from every round; one for a drafter; one for exactly this drafter
and number of nodes. What is measured in one set-up so moves the predictions for its neighbours, and less those for the
rest. Only totals of rounds are used: on a device that works behind the host's back its parts have no times of their own.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from specplug.cost.base import CostModel, Load
from specplug.tree import TreeShape

SURPRISE = 0.5  # most that one round may move a correction by, in the logarithm: hiccups are not news


@dataclass(frozen=True, slots=True)
class Scale:
    """One round to be priced: who drafts what for how many rows, and what they read."""

    drafter: str
    rows: int
    nodes: int  # that the target verifies, over all rows, padding included
    depth: int  # forwards of the draft, one after another
    context: int  # KV entries of all rows
    budget: int | None = None  # most of a row's that the draft reads

    @property
    def target(self) -> Load:
        return Load(self.rows, self.nodes, self.context)

    @property
    def draft(self) -> Load:
        """One level of the draft."""
        widest = max(self.rows, (self.nodes - self.rows) // max(1, self.depth))
        seen = self.context if self.budget is None else min(self.context, self.rows * self.budget)
        return Load(self.rows, widest, seen)

    @property
    def kind(self) -> tuple[str, int, int]:
        """What rounds are alike: the drafter, nodes a row, depth."""
        return self.drafter, round(self.nodes / self.rows), self.depth


def scale(drafter: str, rows: int, shape: TreeShape, context: int, budget: int | None = None) -> Scale:
    """A round in which every row gets `shape`."""
    return Scale(drafter, rows, rows * shape.num_nodes, shape.depth, context, budget)


@dataclass(slots=True)
class Correction:
    """A factor's logarithm, and how many rounds it was learnt from."""

    value: float = 0.0
    seen: int = 0

    def learn(self, surprise: float, slowest: float, belief: float = 1.0) -> None:
        """Move by a share of `surprise`: at first as if the start were worth `belief` rounds, later by at least `slowest`."""
        bounded = surprise if self.seen < 2 else max(-SURPRISE, min(SURPRISE, surprise))
        self.seen += 1
        self.value += max(slowest, 1 / (self.seen + belief)) * bounded


@dataclass(slots=True)
class OnlineCost:
    """Seconds of whole rounds. `prior` may be off by any factor: the first rounds set the scale."""

    prior: CostModel
    situations: dict[Hashable, Correction] = field(default_factory=dict)
    drafters: dict[str, Correction] = field(default_factory=dict)
    kinds: dict[Hashable, Correction] = field(default_factory=dict)
    _world: Correction = field(default_factory=Correction)

    def seconds(self, work: Scale, situation: Hashable) -> float:
        """What a round will take."""
        return self._prior(work) * math.exp(self._learnt(work, situation))

    def knows(self, situation: Hashable) -> bool:
        """Whether rounds of another situation were measured: one round then confirms what they say of this one."""
        return any(other != situation for other in self.situations)

    def price(self, works: Sequence[Scale], situation: Hashable) -> list[float]:
        """`seconds` of rounds of one drafter, none of them plain."""
        common = math.exp(self._shared(works[0].drafter, situation)) if works else 1.0
        found = [self.kinds.get((situation, work.kind)) for work in works]
        return [
            self._prior(work) * common * (math.exp(kind.value) if kind is not None else 1.0)
            for work, kind in zip(works, found, strict=True)
        ]

    def tried(self, work: Scale, situation: Hashable) -> int:
        """Rounds of this kind that were measured in this situation."""
        found = self.kinds.get((situation, work.kind))
        return 0 if found is None else found.seen

    def observe(self, work: Scale, situation: Hashable, seconds: float) -> None:
        """A round took so long."""
        surprise = math.log(max(seconds, 1e-9) / self._prior(work)) - self._learnt(work, situation)
        kind = self.kinds.setdefault((situation, work.kind), Correction())
        place = self.situations.setdefault(situation, Correction(self._world.value))
        if work.nodes == work.rows:  # plain decoding: the scale of everything here
            kind.seen += 1
            place.learn(surprise, 0.1, belief=0.0)
            self._world.learn(surprise, 0.02, belief=0.0)
            return
        drafter = self.drafters.setdefault(work.drafter, Correction())
        share = 0.5 if kind.seen else 0.7  # what is new about a kind is mostly new about its drafter
        drafter.learn(share * surprise, 0.02)
        kind.learn((1 - share) * surprise if kind.seen < 2 else surprise, 0.1)

    def _learnt(self, work: Scale, situation: Hashable) -> float:
        if work.nodes == work.rows:
            return self.situations.get(situation, self._world).value
        kind = self.kinds.get((situation, work.kind))
        return self._shared(work.drafter, situation) + (kind.value if kind else 0.0)

    def _shared(self, drafter: str, situation: Hashable) -> float:
        """What is learnt of every tree of a drafter."""
        known = self.drafters.get(drafter)
        return self.situations.get(situation, self._world).value + (known.value if known else 0.0)

    def _prior(self, work: Scale) -> float:
        seconds = self.prior.target(work.target) + self.prior.overhead(work.rows)
        return seconds + (work.depth * self.prior.draft(work.drafter, work.draft) if work.depth else 0.0)
