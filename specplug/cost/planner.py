"""A plan: for batches and contexts, what fits, the best chain and tree, and where speculation starts to pay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from specplug.cost.base import CostModel
from specplug.cost.choice import (
    MAX_GAMMA,
    MAX_SIZE,
    Budget,
    Case,
    Choice,
    best_chain,
    best_tree,
    better,
    nothing,
    pays_from,
)
from specplug.cost.device_memory import DeviceMemory

GRID = tuple(2**power for power in range(7, 22))  # contexts between which the first that pays is searched


@dataclass(frozen=True, slots=True)
class Cell:
    """One batch and context. `chain`, `tree`, `best` are None where it does not fit: nothing is predicted then."""

    rows: int
    context: int
    needed: float  # bytes a device
    most_rows: int
    chain: Choice | None
    tree: Choice | None
    best: Choice | None


@dataclass(frozen=True, slots=True)
class Limit:
    """What bounds a batch: the longest context that fits, and the first one at which speculation pays (None: none)."""

    rows: int
    most_context: int
    pays_from: int | None


@dataclass(frozen=True, slots=True)
class Planner:
    """Asks a cost model and the memory. `acceptance`: by rank, of each budget; a chain's is the first rank's."""

    cost: CostModel
    memory: DeviceMemory
    drafter: str
    acceptance: Mapping[Budget, Sequence[float]]
    max_gamma: int = MAX_GAMMA
    max_size: int = MAX_SIZE

    def cell(self, rows: int, context: int) -> Cell:
        """What to do for `rows` rows of `context` tokens."""
        needed, most = self.memory.needed(rows, context), self.memory.most_rows(context)
        if not self.memory.fits(rows, context):
            return Cell(rows, context, needed, most, None, None, None)
        chain, tree = self._chain(rows, context), self._tree(rows, context)
        return Cell(rows, context, needed, most, chain, tree, better(nothing(self._case(rows, context)), chain, tree))

    def limit(self, rows: int) -> Limit:
        """The bounds of a batch. Contexts that do not fit are not asked about."""
        longest = self.memory.most_context(rows)
        grid = [context for context in GRID if context < longest]
        first = pays_from(lambda context: self.speedup(rows, context), [*grid, longest]) if longest else None
        return Limit(rows, longest, first)

    def speedup(self, rows: int, context: int) -> float:
        """Of the best choice: 1 where it is not to speculate."""
        return max(1.0, self._chain(rows, context).speedup, self._tree(rows, context).speedup)

    def _chain(self, rows: int, context: int) -> Choice:
        rates = {budget: ranks[0] for budget, ranks in self.acceptance.items()}
        return best_chain(self._case(rows, context), rates, self.max_gamma)

    def _tree(self, rows: int, context: int) -> Choice:
        return best_tree(self._case(rows, context), self.acceptance, self.max_size, self.max_gamma)

    def _case(self, rows: int, context: int) -> Case:
        return Case(self.cost, self.drafter, rows, context)
