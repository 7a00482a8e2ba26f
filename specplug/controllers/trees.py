"""The trees that a planner chooses among: for a drafter's acceptance, the best of every size within some depths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from specplug.tree import TreeShape
from specplug.trees.chain import Chain
from specplug.trees.sequoia import grow

SIZES = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32, 48, 64)
DEPTHS = (1, 2, 3, 4, 6, 8)
DIGITS = 2  # acceptance is rounded to so many: trees that differ by less are not worth another shape


@dataclass(frozen=True, slots=True)
class Candidate:
    """A tree and the tokens that a round with it is expected to yield a row, the bonus included."""

    size: int
    depth: int
    tokens: float
    cap: int  # the depth that it was grown within


def candidates(
    first: Sequence[float], later: Sequence[float], chain: bool, size: int, depth: int
) -> tuple[Candidate, ...]:
    """Every tree worth pricing of at most `size` draft tokens and `depth`. `chain`: no node has a sibling."""
    return _candidates(_rounded(first[:depth]), () if chain else _rounded(later), size, depth)


def shape_of(first: Sequence[float], later: Sequence[float], chain: bool, chosen: Candidate) -> TreeShape:
    """The tree of a candidate."""
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


def _rounded(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(round(value, DIGITS) for value in values)


def _levels(first: Sequence[float], later: Sequence[float]) -> list[tuple[float, ...]]:
    """By depth, P(child of rank k is the accepted one), not rising with the rank."""
    levels = []
    for p in first:
        ranks = [p]
        for share in later:
            ranks.append(min(ranks[-1], (1 - p) * share))
        levels.append(tuple(ranks))
    return levels


@lru_cache(maxsize=512)
def _candidates(first: tuple[float, ...], later: tuple[float, ...], size: int, depth: int) -> tuple[Candidate, ...]:
    levels = _levels(first, later)
    found: dict[tuple[int, int], Candidate] = {}
    caps = [depth] if not later else sorted({cap for cap in DEPTHS if cap < depth} | {depth})
    for cap in caps:
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
