"""The trees that a planner chooses among: for a drafter's acceptance, the best of every size within some depths."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from specplug.streaks import Streaks
from specplug.tree import TreeShape
from specplug.trees.chain import Chain
from specplug.trees.sequoia import grow

SIZES = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32, 48, 64)
DEPTHS = (1, 2, 3, 4, 6, 8)
FINE = 50  # acceptance is rounded to 1 / 50: trees that differ by less are not worth another shape
COARSE = 20  # where it is a hope only


class Candidate(NamedTuple):
    """A tree and the tokens that a round with it is expected to yield a row, the bonus included."""

    size: int
    depth: int
    tokens: float
    cap: int  # the depth that it was grown within
    given: TreeShape | None = None  # the tree itself, where it was not grown


def candidates(
    first: Sequence[float], later: Sequence[float], chain: bool, size: int, depth: int, grid: int = FINE
) -> tuple[Candidate, ...]:
    """Every tree worth pricing of at most `size` draft tokens and `depth`. `chain`: no node has a sibling.

    `grid`: acceptance is rounded to 1 / `grid`; chains need no rounding.
    """
    if chain:
        return _chains(first, min(size, depth))
    return _candidates(_rounded(first[:depth], grid), _rounded(later, grid), size, depth)


def entire(first: Sequence[float], later: Sequence[float], shape: TreeShape) -> tuple[Candidate, ...]:
    """`shape` as it is, the only choice of a drafter whose tree is worth little in parts."""
    levels = _levels(_rounded(first), _rounded(later))
    reached, seen, depths = [1.0], [0] * shape.num_nodes, [0]
    for parent in shape.parents[1:]:
        level, rank = levels[min(depths[parent], len(levels) - 1)], seen[parent]
        seen[parent] += 1
        depths.append(depths[parent] + 1)
        reached.append(reached[parent] * level[rank] if rank < len(level) else 0.0)
    return (Candidate(shape.size, shape.depth, sum(reached), shape.depth, shape),)


def in_streaks(trees: Sequence[Candidate], streaks: Streaks, of_all: float) -> tuple[Candidate, ...]:
    """The chains `trees` for rows that are all in a streak; `of_all`: acceptance of any row's tokens."""
    return tuple(tree._replace(tokens=streaks.tokens(of_all, tree.size)) for tree in trees)


def shape_of(first: Sequence[float], later: Sequence[float], chain: bool, chosen: Candidate) -> TreeShape:
    """The tree of a candidate."""
    if chosen.given is not None:
        return chosen.given
    if chain or chosen.depth == chosen.size:
        return Chain(chosen.size).build()
    return _shape(_rounded(first[: chosen.cap]), _rounded(later), chosen.size, chosen.cap)


def nodes_of(first: Sequence[float], later: Sequence[float], chain: bool, chosen: Candidate) -> list[tuple[int, float]]:
    """Depth and probability of acceptance of a candidate's nodes, in the order in which a smaller tree keeps them."""
    levels = _levels(_rounded(first[: chosen.cap]), () if chain else _rounded(later))
    depths, found = [0], []
    for parent, probability in grow(levels, chosen.size, chosen.cap):
        depths.append(depths[parent] + 1)
        found.append((depths[-1], probability))
    return found


def _rounded(values: Sequence[float], grid: int = FINE) -> tuple[float, ...]:
    return tuple(round(value * grid) / grid for value in values)


def _levels(first: Sequence[float], later: Sequence[float]) -> list[tuple[float, ...]]:
    """By depth, P(child of rank k is the accepted one), not rising with the rank."""
    levels = []
    for p in first:
        ranks = [p]
        for share in later:
            ranks.append(min(ranks[-1], (1 - p) * share))
        levels.append(tuple(ranks))
    return levels


def _chains(first: Sequence[float], longest: int) -> tuple[Candidate, ...]:
    reached = tokens = 1.0
    found = []
    for size in range(1, longest + 1):
        reached *= first[min(size, len(first)) - 1]
        tokens += reached
        if size in SIZES or size == longest:
            found.append(Candidate(size, size, tokens, longest))
    return tuple(found)


@lru_cache(maxsize=512)
def _candidates(first: tuple[float, ...], later: tuple[float, ...], size: int, depth: int) -> tuple[Candidate, ...]:
    levels = _levels(first, later)
    found: dict[tuple[int, int], Candidate] = {}
    for cap in sorted({cap for cap in DEPTHS if cap < depth} | {depth}):
        tokens, depths, deepest = 1.0, [0], 0
        for count, (parent, probability) in enumerate(grow(levels, size, cap), start=1):
            depths.append(depths[parent] + 1)
            deepest = max(deepest, depths[-1])
            tokens += probability
            if count in SIZES or count == size:
                best = found.get((count, deepest))
                if best is None or tokens > best.tokens:
                    found[count, deepest] = Candidate(count, deepest, tokens, cap)
    return tuple(found.values())


@lru_cache(maxsize=256)
def _shape(first: tuple[float, ...], later: tuple[float, ...], size: int, cap: int) -> TreeShape:
    return TreeShape.from_parents([-1, *(parent for parent, _ in grow(_levels(first, later), size, cap))])
