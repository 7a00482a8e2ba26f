"""What a server's work really takes: a machine's times, with noise in every round and a slow drift.

The drift is the machine's (clocks, neighbours), a function of the time of day and so the same for every controller. The
noise is drawn round by round, from the same sequence for every controller. Controllers see neither, only sums of seconds.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from specplug.cost.base import Load
from specplug.cost.choice import Budget, read
from specplug.cost.fitted import TARGET
from specplug.cost.roofline import NO_MODEL
from specplug.round import Seconds
from specplug.simulation.grid import Grid
from specplug.simulation.machine import Machine
from specplug.tree import TreeShape, inner_nodes

NOISE = 0.03  # standard deviation of the logarithm of a round's time
DRIFT, PERIOD = 0.05, 120.0  # the drift's amplitude, in the logarithm, and its length in seconds
HICCUP, HICCUPS = 3.0, 0.002  # what a round takes when something else goes on, and how often
AT_ONCE = 64  # tokens of a row that the first forward of a draft reads; more are read before, in a forward of their own


@dataclass(slots=True)
class World:
    """`drafter`: the part that drafts. `budget`: how much of a row's context the draft reads. Advance `clock` by what it says."""

    machine: Machine
    drafter: str
    budget: Budget
    seed: int
    noise: float = NOISE
    drift: float = DRIFT
    grids: dict[str, Grid] = field(default_factory=dict)
    _rng: random.Random = field(init=False)
    _phase: float = field(init=False)

    def __post_init__(self) -> None:
        self._rng = random.Random(f"{self.seed}/noise")
        self._phase = random.Random(f"{self.seed}/drift").uniform(0, 2 * math.pi)

    def prefill(self, prompts: Sequence[int], clock: float) -> float:
        """Seconds in which the target reads prompts of so many tokens, in one forward, and gives their first tokens."""
        return self.machine.seconds(TARGET, _causal(prompts)) * self._now(clock)

    def reading(self, prompts: Sequence[int], clock: float) -> float:
        """Seconds in which the draft reads them."""
        return self.machine.seconds(self.drafter, _causal(prompts)) * self._now(clock)

    def round(
        self, shape: TreeShape, tokens: int, contexts: Sequence[int], unread: Sequence[int], clock: float
    ) -> Seconds:
        """A round that gives every row `shape`, `tokens` to verify in all. `unread`: a row's tokens unknown to the draft."""
        rows, context = len(contexts), sum(contexts)
        verify = self._seconds(TARGET, Load(rows, tokens, context + tokens))
        if not shape.size:
            factor = self._factor(clock)
            return Seconds(0.0, verify * factor, 0.0, 0.0)
        draft = 0.0
        if self.drafter not in NO_MODEL:
            draft = self._reading(unread, contexts)
            kept = sum(read(length, self.budget) for length in contexts)
            late = sum(n for n in unread if n <= AT_ONCE)
            draft += self._seconds(self.drafter, Load(rows, rows + late, kept + rows + late))
            for expanded, times in _levels(shape):
                tree = rows * shape.num_nodes  # what is drafted already, about
                draft += times * self._seconds(self.drafter, Load(rows, rows * expanded, kept + tree))
        factor = self._factor(clock)
        return Seconds(draft * factor, verify * factor, 0.0, self.machine.overhead(rows) * factor)

    def _reading(self, unread: Sequence[int], contexts: Sequence[int]) -> float:
        behind = [(n, length) for n, length in zip(unread, contexts, strict=True) if n > AT_ONCE]
        if not behind:
            return 0.0
        tokens = sum(n for n, _ in behind)
        kept = sum(read(length - n // 2, self.budget) for n, length in behind)
        return self.machine.seconds(self.drafter, Load(len(behind), tokens, max(1, kept)))

    def _seconds(self, part: str, load: Load) -> float:
        grid = self.grids.get(part)
        if grid is None:
            machine = self.machine
            grid = self.grids[part] = Grid(lambda point: machine.seconds(part, point))
        return grid.seconds(load)

    def _factor(self, clock: float) -> float:
        luck = math.exp(self._rng.gauss(0.0, self.noise)) if self.noise else 1.0
        hiccup = HICCUP if self._rng.random() < HICCUPS and self.noise else 1.0
        return luck * hiccup * self._now(clock)

    def _now(self, clock: float) -> float:
        return math.exp(self.drift * math.sin(2 * math.pi * clock / PERIOD + self._phase))


def _causal(prompts: Sequence[int]) -> Load:
    """Whole prompts: a token sees half of its prompt in the mean."""
    return Load(len(prompts), sum(prompts), max(1, sum(prompts) // 2))


@lru_cache(maxsize=512)
def _levels(shape: TreeShape) -> tuple[tuple[int, int], ...]:
    """Forwards behind the first, that of the root: how many nodes a row each expands, and how many such there are."""
    inner = inner_nodes(shape)
    widths = [sum(start <= node < stop for node in inner) for start, stop in shape.levels[1:-1]]
    return tuple(Counter(widths).items())


@dataclass(slots=True)
class Ledger:
    """How much of each row the draft has read: what a draft's runner knows, so a controller may ask for it too."""

    read: dict[Hashable, int] = field(default_factory=dict)
    lengths: dict[Hashable, int] = field(default_factory=dict)

    def unread(self, rows: Sequence[Hashable]) -> list[int]:
        """Committed tokens of each row that the draft has not read; the root is not among them."""
        return [max(0, self.lengths[row] - self.read.get(row, 0)) for row in rows]
