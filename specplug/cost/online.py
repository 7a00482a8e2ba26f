"""A cost model that corrects itself by the rounds it sees: what a controller plans with.

A round takes what plain decoding takes, more for the further nodes that the target verifies, and the draft's forwards. The
start for each part comes from another model (a profile's, or a guess by shape); factors on them are learnt in the logarithm:
on everything, by situation (batch and context), from plain rounds; on a tree's being there at all and on each further node, by
situation, from all others, so that two nodes tell what ten will take; on a drafter's forwards; and a little for exactly this
drafter and number of nodes. Only
totals of rounds are used: on a device that works behind the host's back its parts have no times of their own.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from specplug.cost.base import CostModel, Load
from specplug.tree import TreeShape

SURPRISE = 0.5  # most that one round may move a correction by, in the logarithm: hiccups are not news
FIRST = 0.15
NOISE = 0.02  # variance of a round's time, in the logarithm
PECULIAR = 0.01  # variance of what a kind of round takes over the sum of its parts
MOST = 4.0  # no factor is believed beyond e to this: a part that costs nothing must be able to come back


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
class Factor:
    """A factor's logarithm, with how much of it is doubt: the state of a scalar Kalman filter."""

    value: float = 0.0
    variance: float = 0.5
    least: float = 0.002  # variance that it keeps: times change

    def times(self, doubt: float) -> float:
        """The factor; one above 1 counts the less, the more it is doubted."""
        return math.exp(self.value * (1 - doubt) if self.value > 0 else self.value)

    def learn(self, surprise: float, share: float, variance: float) -> None:
        """Move by its part in `surprise`: the logarithm of a total to which it contributes `share`, of `variance` in all."""
        gain = self.variance * share / variance
        self.value = max(-MOST, min(MOST, self.value + gain * surprise))
        self.variance = max(self.least, self.variance * (1 - gain * share))


@dataclass(frozen=True, slots=True)
class _Parts:
    """Seconds of a round's parts, their factors included."""

    plain: float
    tree: float = 0.0
    further: float = 0.0
    draft: float = 0.0

    @property
    def total(self) -> float:
        return self.plain + self.tree + self.further + self.draft


@dataclass(slots=True)
class Tree:
    """What is known of verifying trees in one situation: the factors on their being there, and on each further node."""

    first: Factor = field(default_factory=Factor)
    further: Factor = field(default_factory=Factor)

    def elsewhere(self) -> Tree:
        """What this says of another situation."""
        return Tree(Factor(self.first.value), Factor(self.further.value))


@dataclass(slots=True)
class Kind:
    """What is known of one kind of round: how often it was measured, and what it takes beside the sum of its parts."""

    seen: int = 0
    factor: Factor = field(default_factory=lambda: Factor(variance=PECULIAR, least=0.0005))


@dataclass(slots=True)
class OnlineCost:
    """Seconds of whole rounds. `prior` may be off by any factor: the first rounds set the scale."""

    prior: CostModel
    first: float = FIRST  # of a plain round: what the prior leaves out of a tree's being there at all
    situations: dict[Hashable, Correction] = field(default_factory=dict)
    trees: dict[Hashable, Tree] = field(default_factory=dict)  # by situation
    drafters: dict[str, Factor] = field(default_factory=dict)
    kinds: dict[Hashable, Kind] = field(default_factory=dict)
    _world: Correction = field(default_factory=Correction)
    _everywhere: Tree = field(default_factory=Tree)  # as learnt last, anywhere

    def seconds(self, work: Scale, situation: Hashable) -> float:
        """What a round will take."""
        return self.price([work], situation)[0]

    def knows(self, situation: Hashable) -> bool:
        """Whether rounds of another situation were measured: one round then confirms what they say of this one."""
        return any(other != situation for other in self.situations)

    def price(self, works: Sequence[Scale], situation: Hashable, doubt: float = 0.0) -> list[float]:
        """`seconds` of several rounds. `doubt` in [0, 1]: how far to forget what made them dearer than was thought at first."""
        return [
            self._parts(work, situation, doubt).total * self._peculiar(work, situation) ** (1 - doubt) for work in works
        ]

    def tried(self, work: Scale, situation: Hashable) -> int:
        """Rounds of this kind that were measured in this situation."""
        found = self.kinds.get((situation, work.kind))
        return 0 if found is None else found.seen

    def observe(self, work: Scale, situation: Hashable, seconds: float) -> None:
        """A round took so long."""
        parts = self._parts(work, situation)
        surprise = math.log(max(seconds, 1e-9) / (parts.total * self._peculiar(work, situation)))
        kind = self.kinds.setdefault((situation, work.kind), Kind())
        kind.seen += 1
        place = self.situations.setdefault(situation, Correction(self._world.value))
        if work.nodes == work.rows:  # plain decoding: the scale of everything here
            place.learn(surprise, 0.1, belief=0.0)
            self._world.learn(surprise, 0.02, belief=0.0)
            return
        surprise = max(-SURPRISE, min(SURPRISE, surprise))
        tree = self.trees.setdefault(situation, self._everywhere.elsewhere())
        learning = [
            (kind.factor, 1.0),
            (tree.first, parts.tree / parts.total),
            (tree.further, parts.further / parts.total),
        ]
        if work.depth:
            learning.append((self.drafters.setdefault(work.drafter, Factor()), parts.draft / parts.total))
        variance = NOISE + sum(factor.variance * share**2 for factor, share in learning)
        for factor, share in learning:
            factor.learn(surprise, share, variance)
        self._everywhere = tree

    def _peculiar(self, work: Scale, situation: Hashable) -> float:
        """What a kind of round takes over the sum of its parts."""
        found = self.kinds.get((situation, work.kind))
        return 1.0 if found is None else math.exp(found.factor.value)

    def _parts(self, work: Scale, situation: Hashable, doubt: float = 0.0) -> _Parts:
        scale = math.exp(self.situations.get(situation, self._world).value)
        single = self.prior.target(Load(work.rows, work.rows, work.context))
        plain = scale * (single + self.prior.overhead(work.rows))
        if work.nodes == work.rows:
            return _Parts(plain)
        known = self.trees.get(situation, self._everywhere)
        first = self.first * plain * known.first.times(doubt)
        further = scale * known.further.times(doubt) * max(0.0, self.prior.target(work.target) - single)
        if not work.depth:
            return _Parts(plain, first, further)
        drafter = self.drafters.get(work.drafter)
        level = self.prior.draft(work.drafter, work.draft) * (drafter.times(doubt) if drafter else 1.0)
        return _Parts(plain, first, further, scale * work.depth * level)
