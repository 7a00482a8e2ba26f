"""What a planner compares: an arm with the tree that suits it now; and how long a decision stands."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from specplug.controllers.base import Arm, Plan, Prediction
from specplug.host import Batch
from specplug.outcome import Outcome
from specplug.tree import ROOT_ONLY, TreeShape


class Option(NamedTuple):
    """An arm with the tree that suits it best now. `tokens` expected a row, `seconds` predicted for the round.

    `grown` makes the tree: most options are only compared.
    `reading`: of the seconds, those that its draft reads before the first round, for one only; `seconds` has its share of them.
    `reason`: why it was chosen, in a few words; empty as long as it is not.
    """

    arm: Arm
    grown: Callable[[], TreeShape]
    tokens: float
    seconds: float
    samples: float = 0.0  # rows and rounds that were seen of it and still count
    sizes: tuple[int, ...] | None = None  # of each row, where they differ
    reading: float = 0.0
    reason: str = ""

    @property
    def shape(self) -> TreeShape:
        """The tree that every row gets at most."""
        return self.grown()

    @property
    def rate(self) -> float:
        """Tokens a row and second."""
        return self.tokens / self.seconds

    def whole(self, batch: Batch) -> bool:
        """Whether its tree is left as deep as it is, whatever the rows may still take: see `controllers.base.planned`."""
        return batch.sampling or self.sizes is not None

    def plan(self, batch: Batch) -> Plan:
        """The round that it stands for."""
        shape = self.shape if self.whole(batch) else self.shape.cut(batch.room - 1)
        return Plan(self.arm, shape, self.sizes, Prediction(self.reason, self.tokens, self.seconds))

    def catching_up(self, batch: Batch) -> Plan:
        """A round in which the draft reads what it has missed: not to be measured. Of one draft token if nothing was seen of it."""
        plan = self.plan(batch)
        shape = plan.shape if self.samples else plan.shape.cut(1)
        return Plan(self.arm, shape, plan.sizes if self.samples else None, Prediction("its caches catch up"))


@dataclass(slots=True)
class Standing:
    """A decision and how long it stands: in `situation`, for batches of `rows`, until the situation's round `until`; to be reviewed in
    its round `stale`.

    `streak`: whether all rows were in a streak of its arm; when that changes its tree does. `rival`: what came second;
    `plain`: seconds of a plain round then. `lead`: how many times as good as what came second it was, at least 1.
    """

    situation: Hashable
    rows: Hashable
    until: int
    stale: int
    option: Option
    streak: bool
    rival: Option
    plain: float
    lead: float = 1.0
    _plan: Plan | None = field(default=None, init=False)
    # what stands where `streak` is the other way round, if that was seen
    _other: Option | None = field(default=None, init=False)

    def planned(self, batch: Batch) -> Plan:
        """The round that it stands for: most are like the one before."""
        plan = self._plan
        if plan is None or plan.shape.depth >= batch.room:
            plan = self._plan = self.option.plan(batch)
        return plan

    def too_deep(self, batch: Batch) -> bool:
        """Whether its tree is deeper than any row may still take. Most are cut to that; see `Option.plan`."""
        return self.option.whole(batch) and self.planned(batch).shape.depth >= batch.room

    def reviewed(self, rows: Hashable, option: Option, streak: bool, stale: int) -> None:
        """It stands, with the tree that suits it by now."""
        self._other = self.option if streak != self.streak and rows == self.rows else None
        self.rows, self.option, self.streak, self.stale, self._plan = rows, option, streak, stale, None

    def turns(self, streak: bool) -> bool:
        """Take the tree for rows that are all in a streak now, or no more; False if it has to be found first."""
        if streak != self.streak:
            if self._other is None:
                return False
            self.option, self._other = self._other, self.option
            self.streak, self._plan = streak, None
        return True

    def rival_now(self, plain: float) -> Option:
        """What came second, where a plain round takes `plain` seconds by now."""
        return self.rival._replace(seconds=self.rival.seconds * plain / self.plain)


def nothing() -> TreeShape:
    """The tree of plain decoding."""
    return ROOT_ONLY


def reason_to_try(option: Option) -> str:
    """Why an option is tried that is not the best for all that is known; what it promises is what it may give at most."""
    if not option.shape.size:
        return "tries plain decoding again"
    return "tries it again: may be better than the best" if option.samples else "tries it: nothing was seen of it yet"


def situation_of(batch: Batch | Outcome) -> Hashable:
    """What rounds take and yield about the same: whether sampled, about how many rows, about how long they are."""
    return batch.sampling, batch.num_rows.bit_length(), batch.context.bit_length()


def widest(arms: Sequence[Arm]) -> list[Arm]:
    """One arm for each drafter, the one with its largest tree: any smaller one may be chosen."""
    found: dict[int, Arm] = {}
    for arm in arms:
        best = found.get(id(arm.drafter))
        if best is None or arm.shape.size > best.shape.size:
            found[id(arm.drafter)] = arm
    return list(found.values())
