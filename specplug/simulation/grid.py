"""A measured grid: seconds of a forward at chosen batches, nodes a row and contexts, and between them by interpolation."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from specplug.cost.base import Load

ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 24, 32, 48, 64, 96, 128)  # tokens a row
CONTEXTS = tuple(round(64 * 2 ** (step / 2)) for step in range(31))  # tokens a row, to two million


@dataclass(slots=True)
class Grid:
    """`measure`: seconds at a point of the grid, asked once each. Between points the logarithm is linear in logarithms."""

    measure: Callable[[Load], float]
    _points: dict[tuple[int, int, int], float] = field(default_factory=dict)

    def seconds(self, load: Load) -> float:
        """Of one forward. Beyond the grid its last points count."""
        places = (
            _place(_ROWS, load.rows),
            _place(_WIDTHS, load.tokens / load.rows),
            _place(_CONTEXTS, load.context / load.rows),
        )
        total = 0.0
        (i, u), (j, v), (k, w) = places
        for di, pi in ((0, 1 - u), (1, u)):
            if pi:
                for dj, pj in ((0, 1 - v), (1, v)):
                    if pj:
                        if w < 1:
                            total += pi * pj * (1 - w) * self._at(i + di, j + dj, k)
                        if w > 0:
                            total += pi * pj * w * self._at(i + di, j + dj, k + 1)
        return math.exp(total)

    def _at(self, i: int, j: int, k: int) -> float:
        found = self._points.get((i, j, k))
        if found is None:
            rows = ROWS[i]
            found = math.log(self.measure(Load(rows, rows * WIDTHS[j], rows * CONTEXTS[k])))
            self._points[i, j, k] = found
        return found


def _logs(values: Sequence[int]) -> list[float]:
    return [math.log(value) for value in values]


_ROWS, _WIDTHS, _CONTEXTS = _logs(ROWS), _logs(WIDTHS), _logs(CONTEXTS)


def _place(axis: Sequence[float], value: float) -> tuple[int, float]:
    """Between which two points, and how far along."""
    x = min(max(math.log(max(value, 1.0)), axis[0]), axis[-1])
    index = min(bisect_right(axis, x) - 1, len(axis) - 2)
    return index, (x - axis[index]) / (axis[index + 1] - axis[index])
