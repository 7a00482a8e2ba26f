"""What a planner compares: an arm with the tree that suits it now; and how long a decision stands."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from specplug.controllers.base import Arm
from specplug.host import Batch
from specplug.tree import TreeShape


@dataclass(frozen=True, slots=True)
class Option:
    """An arm with the tree that suits it best now. `tokens` expected a row, `seconds` predicted for the round."""

    arm: Arm
    shape: TreeShape
    tokens: float
    seconds: float
    samples: float = 0.0  # rows and rounds that were seen of it and still count
    sizes: tuple[int, ...] | None = None  # of each row, where they differ

    @property
    def rate(self) -> float:
        """Tokens a row and second."""
        return self.tokens / self.seconds


@dataclass(frozen=True, slots=True)
class Standing:
    """A decision and how long it stands: for batches like `key`, until the situation's round `until`."""

    key: Hashable
    until: int
    option: Option


def situation_of(batch: Batch) -> Hashable:
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


def budget_of(arm: Arm) -> int | None:
    """Most of a row's committed tokens that the arm's draft reads; None: all."""
    policy = getattr(arm.drafter, "kv_policy", None)
    return None if policy is None else policy.budget
