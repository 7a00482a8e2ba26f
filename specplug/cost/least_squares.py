"""Least squares with coefficients that are not negative, for a handful of features: small enough to do without a library."""

from __future__ import annotations

from collections.abc import Sequence


def fit_nonnegative(rows: Sequence[Sequence[float]], targets: Sequence[float], sweeps: int = 20000) -> list[float]:
    """The x >= 0 that minimises the relative errors, sum over i of ((rows[i] . x) / targets[i] - 1)^2.

    Coordinate descent on the normal equations, each column scaled to length one; targets must be positive. Times span
    orders of magnitude, and it is the ratio that a decision depends on.
    """
    scaled = [[value / target for value in row] for row, target in zip(rows, targets, strict=True)]
    lengths = [sum(row[j] ** 2 for row in scaled) ** 0.5 or 1.0 for j in range(len(scaled[0]))]
    gram = [
        [sum(row[i] * row[j] for row in scaled) / (lengths[i] * lengths[j]) for j in range(len(lengths))]
        for i in range(len(lengths))
    ]
    aim = [sum(row[i] for row in scaled) / lengths[i] for i in range(len(lengths))]
    x = [0.0] * len(lengths)
    for _ in range(sweeps):
        moved = 0.0
        for i, line in enumerate(gram):
            if line[i] <= 0.0:
                continue
            new = max(0.0, x[i] + (aim[i] - sum(a * b for a, b in zip(line, x, strict=True))) / line[i])
            moved = max(moved, abs(new - x[i]))
            x[i] = new
        if moved < 1e-12 * max(1.0, max(x)):
            break
    return [value / length for value, length in zip(x, lengths, strict=True)]
