"""Controllers: how much to speculate, and who drafts."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from specplug.drafters.base import Drafter
from specplug.host import Batch, Host
from specplug.tree import TreeShape

if TYPE_CHECKING:
    from specplug.controllers.memory import Memory
    from specplug.round import Round


@dataclass(frozen=True, slots=True)
class Arm:
    """One thing a controller may choose: a drafter (opened) with a tree shape. `label` names it in statistics."""

    label: str
    drafter: Drafter
    shape: TreeShape
    min_context: int = 0  # not worth trying below so many tokens in the cache
    grown: bool = False  # `shape` only bounds the trees, which are grown at run time


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a controller expects of a round, for whoever looks on (trace/). `reason`: why this plan, in a few words.

    `tokens` a row, the bonus included; `seconds` of the round without its planning; None: it expects nothing in numbers.
    """

    reason: str
    tokens: float | None = None
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """One round's decision. `shape` is the arm's or a smaller one, cut to what the rows may still take.

    `sizes`: most draft tokens of each row, of which it gets those that `shape.priority` ranks first; None: all of `shape`.
    """

    arm: Arm
    shape: TreeShape
    sizes: tuple[int, ...] | None = None
    predicted: Prediction | None = None  # None: the controller predicts nothing


class Controller:
    """Base of the controllers. `open` makes the working copy that one generation uses."""

    needs_baseline = False  # whether it wants an arm that drafts nothing beside the others
    resizes = False  # whether it chooses among trees of every size up to an arm's
    arms: tuple[Arm, ...]

    def open(self, arms: Sequence[Arm], host: Host, memory: Memory) -> Self:
        """A working copy that chooses among `arms` (at least one, the preferred first)."""
        working = copy.copy(self)
        working.arms = tuple(arms)
        working.setup(host, memory)
        return working

    def setup(self, host: Host, memory: Memory) -> None:
        """Prepare the working copy. `memory` outlives the generation."""

    def plan(self, batch: Batch) -> Plan:
        """Decide for the next round, from what was observed so far and the batch's size and context."""
        raise NotImplementedError

    def observe(self, finished: Round) -> None:
        """Learn from a finished round; may come a round late."""

    def forget(self, rows: Sequence[Hashable]) -> None:
        """These rows have left for good."""


def planned(arm: Arm, batch: Batch) -> Plan:
    """`arm` with its tree cut to the most tokens that any row may still take (draft tokens and the bonus).

    A sampled row's draws go with the tree's depths: cutting to its neighbours' room would make it draw otherwise than it
    does alone, so there the host cuts what is accepted, and the last round is a little dearer.
    """
    return Plan(arm, arm.shape if batch.sampling else arm.shape.cut(batch.room - 1))
