"""For which shapes graphs are captured. Everything else runs eagerly."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence

MOST_GRAPHS = 16  # of one draft: each costs capture time at the start, and memory
MOST_TOKENS = 256  # of one draft forward: beyond, the kernels take longer than their launches
RESERVE_GB = 1.0  # what a capture must leave free: SGLang's own bound for its DFLASH draft


def token_counts(batch_sizes: Iterable[int], widths: Iterable[int]) -> tuple[int, ...]:
    """Token counts of draft forwards to capture, ascending: batch sizes times nodes of a level.

    Where they are too many, evenly thinned; the smallest and the largest stay. A forward between two is padded.
    """
    widths = tuple(widths)
    counts = sorted({size * width for size in batch_sizes for width in widths if size * width <= MOST_TOKENS})
    if len(counts) <= MOST_GRAPHS:
        return tuple(counts)
    step = (len(counts) - 1) / (MOST_GRAPHS - 1)
    return tuple(counts[round(place * step)] for place in range(MOST_GRAPHS))


def size_for(count: int, sizes: Sequence[int]) -> int | None:
    """The smallest of the ascending `sizes` that holds `count`; None if none does."""
    place = bisect_left(sizes, count)
    return sizes[place] if place < len(sizes) else None


def fits(width: int, widest: int, widest_gb: float, free_gb: float) -> bool:
    """Whether the graphs of `width` may be captured: those of `widest` took `widest_gb`, and buffers grow with the width."""
    return free_gb - widest_gb * width / widest >= RESERVE_GB
