"""A profile as what planning starts from: its times for the arms at hand, and a cost model that trusts them from the start."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass

from specplug.cost.base import Load
from specplug.cost.fitted import FittedCost
from specplug.cost.online import OnlineCost
from specplug.cost.scale import Scale

BELIEVED = 2  # rounds of plain decoding that a profile stands for


@dataclass(frozen=True, slots=True)
class Drafting:
    """How a profile knows an arm's drafter. `part`: its name among the times, None if it has none of it."""

    part: str | None
    budget: int | None  # most KV entries of a row that it reads; None: all
    share: float = 0.2  # of the target's time over what the draft reads, if it was not measured


@dataclass(frozen=True, slots=True)
class Prior:
    """Times of a profile for arms by their labels."""

    cost: FittedCost
    drafts: Mapping[str, Drafting]

    def target(self, load: Load) -> float:
        return self.cost.target(load)

    def draft(self, drafter: str, load: Load) -> float:
        known = self.drafts[drafter]
        if known.budget is not None:
            load = load._replace(context=min(load.context, load.rows * known.budget))
        return known.share * self.cost.target(load) if known.part is None else self.cost.draft(known.part, load)

    def overhead(self, rows: int) -> float:
        return self.cost.overhead(rows)


@dataclass(slots=True)
class Calibrated(OnlineCost):
    """`OnlineCost` from measured times: plain decoding need not be tried first, and how drafting relates to it is known.

    The scale may still be another (a busier machine): the first round in a situation, whichever it is, sets it.
    """

    first: float = 0.0  # trees were measured as they are

    def tried(self, work: Scale, situation: Hashable) -> int:
        believed = BELIEVED if work.nodes == work.rows else 0
        return believed + OnlineCost.tried(self, work, situation)

    def observe(self, work: Scale, situation: Hashable, *seconds: float, settling: bool = False) -> None:
        if not settling and not self.settled(situation):
            surprise = math.log(max(seconds[0], 1e-9) / self.seconds(work, situation))
            self._place(situation).learn(surprise, 0.1, belief=0.0)
            self._world.learn(surprise, 0.02, belief=0.0)
        OnlineCost.observe(self, work, situation, *seconds, settling=settling)
