"""What a cell could take by the device's figures, and what speculation gives by them or by what was measured.

One formula for both (specplug/cost/choice.py): tokens of the best chain times a plain step over the round.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass

from specplug.cost.base import CostModel, Load
from specplug.cost.choice import Case, Choice, best_chain, plain_seconds, read
from specplug_hf.calibration.grid import Cell


@dataclass(frozen=True, slots=True)
class Limits:
    """A cell under a cost model. `budget`: KV entries a row that the draft reads."""

    cost: CostModel
    cell: Cell
    budget: int

    @property
    def plain(self) -> float:
        """Seconds of a step of plain decoding."""
        return plain_seconds(self._case)

    @property
    def draft(self) -> float:
        """Seconds of the first forward of the target drafting for itself."""
        rows = self.cell.rows
        return self.cost.draft("self", Load(rows, rows, rows * (read(self.cell.context, self.budget) + 1)))

    def verify(self, nodes: int) -> float:
        """Seconds of verifying `nodes` nodes a row."""
        rows = self.cell.rows
        return self.cost.target(Load(rows, rows * nodes, rows * (self.cell.context + nodes)))

    def best(self, acceptance: float, most: int) -> Choice:
        """The best chain of at most `most` draft tokens, each accepted with probability `acceptance` if those before were."""
        return best_chain(self._case, {self.budget: acceptance}, most)

    @property
    def _case(self) -> Case:
        return Case(self.cost, "self", self.cell.rows, self.cell.context)


@dataclass(frozen=True, slots=True)
class Measured:
    """A `CostModel` of one cell from its own times, in seconds.

    `verify`: of a round but its drafting and `own`, by nodes a row; linear between them. `step`: of a draft's forward. `own`:
    what a plain round takes besides its forward.
    """

    verify: Mapping[int, float]
    step: float
    own: float

    def target(self, load: Load) -> float:
        """Between the two nearest numbers of nodes that were measured; beyond them the nearest's."""
        nodes, known = load.tokens / load.rows, sorted(self.verify)
        above = bisect_left(known, nodes)
        if above in (0, len(known)):
            return self.verify[known[min(above, len(known) - 1)]]
        low, high = known[above - 1], known[above]
        share = (nodes - low) / (high - low)
        return (1 - share) * self.verify[low] + share * self.verify[high]

    def draft(self, drafter: str, load: Load) -> float:
        """Any step of the draft."""
        return self.step

    def overhead(self, rows: int) -> float:
        """Of any round."""
        return self.own
