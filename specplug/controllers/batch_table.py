"""`batch_table`: how many tokens to draft by the size of the batch, from a table.

The synergy of speculative decoding and batching (Su et al., arXiv 2310.18813): the best length falls as the batch grows,
and a table measured once says how. It knows nothing of context or acceptance: `goodput` does.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

from specplug.controllers.base import Controller, Plan, planned
from specplug.controllers.memory import Memory
from specplug.errors import OptionError
from specplug.host import Batch, Host
from specplug.tree import ROOT_ONLY


@dataclass
class BatchTable(Controller):
    """`table`: pairs of batch size and draft length, "1-6/4-4/16-2/32-0": from 4 rows on 4 tokens deep, from 32 on none.

    The tree that was asked for is cut to that depth; 0 is plain decoding. Smaller batches than the first take its length.
    """

    table: str = "1-5/4-4/8-3/16-2/32-0"

    def __post_init__(self) -> None:
        self._steps = _parse(self.table)

    def setup(self, host: Host, memory: Memory) -> None:
        self._sizes = [size for size, _ in self._steps]

    def plan(self, batch: Batch) -> Plan:
        place = bisect_right(self._sizes, batch.num_rows) - 1
        depth = self._steps[max(0, place)][1]
        arm = self.arms[0]
        if depth == 0:
            return Plan(arm, ROOT_ONLY)
        chosen = planned(arm, batch)
        return Plan(arm, chosen.shape.cut(depth))


def _parse(table: str) -> list[tuple[int, int]]:
    try:
        steps = [(int(size), int(depth)) for size, depth in (step.split("-") for step in table.split("/"))]
    except ValueError:
        steps = []
    sizes = [size for size, _ in steps]
    if not steps or sizes != sorted(set(sizes)) or min(sizes) < 1 or min(depth for _, depth in steps) < 0:
        raise OptionError(
            f"batch_table: table={table!r}; expected batch sizes that rise, each with a draft length: '1-5/8-3/32-0'."
        )
    return steps
