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
from collections.abc import Hashable
from dataclasses import dataclass, field

from specplug.cost.base import CostModel
from specplug.cost.factors import SURPRISE, Correction, Factor
from specplug.cost.quote import Base, Kind, Parts, Quote
from specplug.cost.scale import Scale

FIRST = 0.15
TOLERANCE = 0.15  # a round with a tree may take so much less than plain decoding, in the logarithm, before that is believed to take less
NOISE = 0.02  # variance of a round's time, in the logarithm
BASES = 64  # most kinds of rounds of which it is kept what the prior says


@dataclass(slots=True)
class Tree:
    """What is known of verifying trees in one situation: the factors on their being there, and on each further node."""

    first: Factor = field(default_factory=Factor)
    further: Factor = field(default_factory=Factor)

    def elsewhere(self) -> Tree:
        """What this says of another situation."""
        return Tree(Factor(self.first.value), Factor(self.further.value))


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
    _bases: dict[Hashable, Base] = field(default_factory=dict)

    def quote(self, like: Scale, situation: Hashable, doubt: float = 0.0) -> Quote:
        """Prices of rounds `like` one but for their nodes, over all rows, and depth.

        `doubt` in [0, 1]: how far to forget what made them dearer than was thought at first.
        """
        scale = math.exp(self.situations.get(situation, self._world).value)
        known, drafter = self.trees.get(situation, self._everywhere), self.drafters.get(like.drafter)
        tree, further = self.first * known.first.times(doubt), scale * known.further.times(doubt)
        level = scale * drafter.times(doubt) if drafter else scale
        return Quote(self._base(like), scale, tree, further, level, self.kinds.get(situation, {}), doubt)

    def seconds(self, work: Scale, situation: Hashable) -> float:
        """What a round will take."""
        return self.quote(work, situation).seconds(work.nodes, work.depth)

    def plain(self, work: Scale, situation: Hashable) -> float:
        """What plain decoding of the rows of `work` will take."""
        return self.quote(work, situation).plain

    def level(self, work: Scale, situation: Hashable) -> float:
        """What one level of the draft of `work` will take."""
        return self.quote(work, situation).parts(work.nodes, 1).draft

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

    def observe(self, work: Scale, situation: Hashable, *seconds: float, settling: bool = False) -> None:
        """Rounds took so long, one after another. `settling`: a generation's first ones, slower than those to come; better than
        nothing."""
        kind, place, plain = self._kind(work, situation), self._place(situation), work.nodes == work.rows
        kind.seen += len(seconds)
        for took in seconds:
            parts = self.quote(work, situation).parts(work.nodes, work.depth)
            bounded = max(took, 1e-9)
            surprise = math.log(bounded / sum(parts)) - kind.factor.value
            if settling:
                place.stand_in(surprise)
                self._world.stand_in(surprise)
            elif plain:  # plain decoding: the scale of everything here
                place.learn(surprise, 0.1, belief=0.0)
                self._world.learn(surprise, 0.02, belief=0.0)
            else:
                place.at_most(math.log(bounded / parts.plain) + TOLERANCE)
                self._learn(work, situation, parts, kind, max(-SURPRISE, min(SURPRISE, surprise)))

    def _learn(self, work: Scale, situation: Hashable, parts: Parts, kind: Kind, surprise: float) -> None:
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

    def _place(self, situation: Hashable) -> Correction:
        place = self.situations.get(situation)
        if place is None:
            place = self.situations[situation] = Correction(self._world.value)
        return place

    def _kind(self, work: Scale, situation: Hashable) -> Kind:
        kinds, kind = self.kinds.setdefault(situation, {}), work.kind
        found = kinds.get(kind)
        if found is None:
            found = kinds[kind] = Kind()
        return found

    def _base(self, like: Scale) -> Base:
        """What the prior says of such rounds, worked out once."""
        key = like.drafter, like.rows, like.context, like.budget
        found = self._bases.get(key)
        if found is None:
            if len(self._bases) >= BASES:
                self._bases.clear()
            found = self._bases[key] = Base(self.prior, like)
        return found
