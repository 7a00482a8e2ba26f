"""Where to measure: batches x contexts, the corners first, and a tree for every number of nodes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from specplug import TreeShape
from specplug.tree import ROOT_ONLY
from specplug.trees import Chain, Sequoia

LONGEST_CHAIN = 3  # nodes up to which a tree is a chain


@dataclass(frozen=True, slots=True)
class Cell:
    """One batch: `rows` rows of prompts `context` tokens long."""

    rows: int
    context: int

    @property
    def tokens(self) -> int:
        """Of all prompts."""
        return self.rows * self.context

    def __str__(self) -> str:
        return f"batch {self.rows} x {self.context} tokens"


def corners_first(batches: Sequence[int], contexts: Sequence[int]) -> list[Cell]:
    """Every cell, the smallest first, then always the one farthest from those before it: what was measured by any time spans
    the grid as well as so many cells can. Distances are of logarithms, each axis scaled to length one."""
    rows, lengths = sorted(set(batches)), sorted(set(contexts))
    left = [Cell(r, c) for r in rows for c in lengths]
    place = {cell: (_share(cell.rows, rows), _share(cell.context, lengths)) for cell in left}
    found = [left.pop(0)]
    while left:
        chosen = max(left, key=lambda cell: min(math.dist(place[cell], place[done]) for done in found))
        left.remove(chosen)
        found.append(chosen)
    return found


def _share(value: int, values: Sequence[int]) -> float:
    span = math.log(values[-1] / values[0])
    return math.log(value / values[0]) / span if span else 0.0


def tree_of(nodes: int) -> TreeShape:
    """A tree of so many nodes, the root included: a chain if they are few, else about as deep as it is wide."""
    size = nodes - 1
    if size == 0:
        return ROOT_ONLY
    if nodes <= LONGEST_CHAIN:
        return Chain(size).build()
    return Sequoia(size, max(2, round(math.sqrt(2 * size)))).build()
