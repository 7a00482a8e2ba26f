"""How many draft tokens each row of a batch gets, where rows of unequal size cost less than padded ones.

SmartSpec (arXiv 2406.14066, section 4.3): in order of marginal gain, as long as expected tokens over predicted time rises.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

STEPS = 24  # sizes of the whole batch that are priced


def sizes_by_row(
    nodes: Sequence[tuple[int, float]], ratios: Sequence[float], seconds: Callable[[int], float]
) -> tuple[tuple[int, ...], float]:
    """Draft tokens of each row, from the best tree's nodes, and the tokens that all rows are expected to yield.

    `nodes`: depth and probability of acceptance of each node, in the order in which a smaller tree keeps them. `ratios`: each
    row's acceptance over the batch's. `seconds`: of a round in which so many draft tokens are verified over all rows.
    """
    gains = sorted(
        ((gain, row) for row, ratio in enumerate(ratios) for gain in _gains(nodes, ratio)), key=lambda g: -g[0]
    )
    counts, tokens = [0] * len(ratios), float(len(ratios))
    best, sizes, yielded = 0.0, tuple(counts), tokens
    priced = {max(1, round(len(gains) * step / STEPS)) for step in range(1, STEPS + 1)}
    for place, (gain, row) in enumerate(gains, start=1):
        counts[row] += 1
        tokens += gain
        if place in priced and (rate := tokens / seconds(place)) > best:
            best, sizes, yielded = rate, tuple(counts), tokens
    return sizes, yielded


def _gains(nodes: Sequence[tuple[int, float]], ratio: float) -> list[float]:
    """What each further node adds for a row; never more than the one before it, without which it is not kept."""
    found: list[float] = []
    for depth, probability in nodes:
        gain = min(1.0, probability * ratio**depth)
        found.append(min(gain, found[-1]) if found else gain)
    return found


def rectangle(sizes: Sequence[int]) -> int:
    """Tokens that a forward computes which pads every row to the longest."""
    return len(sizes) * max(sizes)
