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
from typing import NamedTuple

from specplug.cost.base import CostModel, Load
from specplug.cost.factors import SURPRISE, Correction, Factor
from specplug.tree import TreeShape

FIRST = 0.15
TOLERANCE = 0.15  # a round with a tree may take so much less than plain decoding, in the logarithm, before that is believed to take less
NOISE = 0.02  # variance of a round's time, in the logarithm
PECULIAR = 0.01  # variance of what a kind of round takes over the sum of its parts


class Scale(NamedTuple):
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
        return self.level(self.widest(self.nodes, self.depth))

    def widest(self, nodes: int, depth: int) -> int:
        """Tokens of one level where there are so many nodes and levels."""
        return max(self.rows, (nodes - self.rows) // max(1, depth))

    def level(self, tokens: int) -> Load:
        """One of so many tokens."""
        seen = self.context if self.budget is None else min(self.context, self.rows * self.budget)
        return Load(self.rows, tokens, seen)

    @property
    def kind(self) -> tuple[str, int, int]:
        """What rounds are alike: the drafter, nodes a row, depth."""
        return self.drafter, round(self.nodes / self.rows), self.depth


def scale(drafter: str, rows: int, shape: TreeShape, context: int, budget: int | None = None) -> Scale:
    """A round in which every row gets `shape`."""
    return Scale(drafter, rows, rows * shape.num_nodes, shape.depth, context, budget)


class _Parts(NamedTuple):
    """Seconds of a round's parts, their factors included."""

    plain: float
    tree: float = 0.0
    further: float = 0.0
    draft: float = 0.0


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
    kinds: dict[Hashable, dict[tuple[str, int, int], Kind]] = field(default_factory=dict)  # by situation
    _world: Correction = field(default_factory=Correction)
    _everywhere: Tree = field(default_factory=Tree)  # as learnt last, anywhere

    def seconds(self, work: Scale, situation: Hashable) -> float:
        """What a round will take."""
        return self.price(work, [(work.nodes, work.depth)], situation)[0]

    def price(
        self, like: Scale, sizes: Sequence[tuple[int, int]], situation: Hashable, doubt: float = 0.0
    ) -> list[float]:
        """Seconds of rounds `like` one but for their nodes, over all rows, and depth.

        `doubt` in [0, 1]: how far to forget what made them dearer than was thought at first.
        """
        ground, kinds = self._ground(like, situation, doubt), self.kinds.get(situation, {})
        # many trees have as many nodes, or levels as wide
        verifies: dict[int, float] = {like.rows: ground.plain}
        levels: dict[int, float] = {}
        found, drafter, rows = [], like.drafter, like.rows
        for nodes, depth in sizes:
            seconds = verifies.get(nodes)
            if seconds is None:
                seconds = verifies[nodes] = ground.plain + sum(ground.verify(nodes))
            if depth and nodes != rows:
                widest = like.widest(nodes, depth)
                level = levels.get(widest)
                if level is None:
                    level = levels[widest] = ground.forward(widest)
                seconds += depth * level
            if kinds and (kind := kinds.get((drafter, round(nodes / rows), depth))) is not None:
                seconds *= math.exp(kind.factor.value * (1 - doubt))
            found.append(seconds)
        return found

    def plain(self, work: Scale, situation: Hashable) -> float:
        """What plain decoding of the rows of `work` will take."""
        return self._ground(work, situation).plain

    def level(self, work: Scale, situation: Hashable) -> float:
        """What one level of the draft of `work` will take."""
        return self._ground(work, situation).draft(work.nodes, 1)

    def tried(self, work: Scale, situation: Hashable) -> int:
        """Rounds of this kind that were measured in this situation."""
        found = self.kinds.get(situation, {}).get(work.kind)
        return 0 if found is None else found.seen

    def settled(self, situation: Hashable) -> int:
        """Rounds of plain decoding that were measured in this situation, none of them a generation's first."""
        place = self.situations.get(situation)
        return 0 if place is None else place.seen

    def knows(self, situation: Hashable) -> bool:
        """Whether rounds of another situation were measured: one round then confirms what they say of this one."""
        return any(other != situation for other in self.situations)

    def observe(self, work: Scale, situation: Hashable, seconds: float, settling: bool = False) -> None:
        """A round took so long. `settling`: a generation's first ones, slower than those to come; better than nothing."""
        parts = self._ground(work, situation).parts(work.nodes, work.depth)
        kind = self._kind(work, situation)
        kind.seen += 1
        surprise = math.log(max(seconds, 1e-9) / (sum(parts) * math.exp(kind.factor.value)))
        place = self.situations.get(situation)
        if place is None:
            place = self.situations[situation] = Correction(self._world.value)
        if settling:
            place.stand_in(surprise)
            self._world.stand_in(surprise)
        elif work.nodes == work.rows:  # plain decoding: the scale of everything here
            place.learn(surprise, 0.1, belief=0.0)
            self._world.learn(surprise, 0.02, belief=0.0)
        else:
            place.at_most(math.log(max(seconds, 1e-9) / parts.plain) + TOLERANCE)
            self._learn(work, situation, parts, kind, max(-SURPRISE, min(SURPRISE, surprise)))

    def _learn(self, work: Scale, situation: Hashable, parts: _Parts, kind: Kind, surprise: float) -> None:
        """What a round with a tree says of its parts."""
        tree, total = self.trees.get(situation), sum(parts)
        if tree is None:
            tree = self.trees[situation] = self._everywhere.elsewhere()
        learning = [(kind.factor, 1.0), (tree.first, parts.tree / total), (tree.further, parts.further / total)]
        if work.depth:
            learning.append((self.drafters.setdefault(work.drafter, Factor()), parts.draft / total))
        variance = NOISE + sum(factor.variance * share**2 for factor, share in learning)
        for factor, share in learning:
            factor.learn(surprise, share, variance)
        self._everywhere = tree

    def _kind(self, work: Scale, situation: Hashable) -> Kind:
        kinds, kind = self.kinds.setdefault(situation, {}), work.kind
        found = kinds.get(kind)
        if found is None:
            found = kinds[kind] = Kind()
        return found

    def _ground(self, work: Scale, situation: Hashable, doubt: float = 0.0) -> _Ground:
        scale = math.exp(self.situations.get(situation, self._world).value)
        single = self.prior.target(Load(work.rows, work.rows, work.context))
        plain = scale * (single + self.prior.overhead(work.rows))
        known, drafter = self.trees.get(situation, self._everywhere), self.drafters.get(work.drafter)
        tree, further = self.first * plain * known.first.times(doubt), scale * known.further.times(doubt)
        level = scale * (drafter.times(doubt) if drafter else 1.0)
        return _Ground(self.prior, work, single, plain, tree, further, level)


class _Ground(NamedTuple):
    """What all rounds of a drafter for a batch have in common: seconds, and factors on what the prior says of the rest."""

    prior: CostModel
    work: Scale
    single: float  # of a plain forward, for the prior
    plain: float
    tree: float
    further: float
    level: float

    def verify(self, nodes: int) -> tuple[float, float]:
        """What verifying `nodes` over all rows takes beside plain decoding: as a tree is there, and as it has so many nodes."""
        work = self.work
        if nodes == work.rows:
            return 0.0, 0.0
        more = self.prior.target(Load(work.rows, nodes, work.context)) - self.single
        return self.tree, self.further * max(0.0, more)

    def draft(self, nodes: int, depth: int) -> float:
        """`depth` forwards of the draft, for so many nodes; 0 for a round that verifies roots alone."""
        if not depth or nodes == self.work.rows:
            return 0.0
        return depth * self.forward(self.work.widest(nodes, depth))

    def forward(self, tokens: int) -> float:
        """One forward of the draft, for so many tokens."""
        return self.level * self.prior.draft(self.work.drafter, self.work.level(tokens))

    def parts(self, nodes: int, depth: int) -> _Parts:
        """Of a round that verifies `nodes` over all rows, behind `depth` forwards of the draft."""
        return _Parts(self.plain, *self.verify(nodes), self.draft(nodes, depth))
