"""The trees that a planner chooses among: for a drafter's acceptance, the best of every size within some depths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

from specplug.streaks import Streaks
from specplug.tree import TreeShape
from specplug.trees.chain import Chain
from specplug.trees.sequoia import grow

SIZES = frozenset((1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32, 48, 64))
DEPTHS = (1, 2, 3, 4, 6, 8)
GRID = 20  # trees are looked for at acceptance rounded to 1 / 20: the best ones there yield 0.06 % less than the best ones, in the mean


class Candidate(NamedTuple):
    """A tree and the tokens that a round with it is expected to yield a row, the bonus included."""

    size: int
    depth: int
    tokens: float
    cap: int  # the depth that it was grown within
    given: TreeShape | None = None  # the tree itself, where it was not grown


Priced = Sequence[tuple[float, Candidate]]  # seconds of a round, and its tree


@lru_cache(maxsize=64)
def caps(depth: int) -> tuple[int, ...]:
    """The depths to grow trees within where they may be at most `depth` deep."""
    return (*(cap for cap in DEPTHS if cap < depth), depth)


def candidates(first: Sequence[float], later: Sequence[float], size: int, cap: int) -> tuple[Candidate, ...]:
    """The trees worth pricing of at most `size` draft tokens that are grown within the depth `cap`. What they yield is said for
    rounded acceptance: see `tokens_of`."""
    return _candidates(_rounded(first[:cap]), _rounded(later), size, cap)


def chains(first: Sequence[float], longest: int) -> tuple[Candidate, ...]:
    """Those of which no node has a sibling."""
    reached = tokens = 1.0
    found = []
    for size in range(1, longest + 1):
        reached *= first[min(size, len(first)) - 1]
        tokens += reached
        if size in SIZES or size == longest:
            found.append(Candidate(size, size, tokens, longest))
    return tuple(found)


def entire(first: Sequence[float], later: Sequence[float], shape: TreeShape) -> tuple[Candidate, ...]:
    """`shape` as it is, the only choice of a drafter whose tree is worth little in parts."""
    return (Candidate(shape.size, shape.depth, tokens_of(first, later, shape.parents[1:]), shape.depth, shape),)


def climbed(
    depths: Sequence[int],
    start: int,
    within: Callable[[int], Priced],
    pick: Callable[[Priced], tuple[float, Candidate]],
) -> tuple[Priced, int]:
    """The trees `within` the best of the `depths`, and that one, looked for from `start` on; `pick` says which tree is best.

    Deeper ones yield more and more slowly and cost more each time, so the rate rises up to one depth and falls behind it.
    """
    at = min(range(len(depths)), key=lambda place: abs(depths[place] - start))
    trees = within(depths[at])
    best = pick(trees)
    begun = at
    for step in (1, -1):
        while 0 <= at + step < len(depths):
            others = within(depths[at + step])
            other = pick(others)
            # where both are the same trees, none of them as deep as it may be, it is farther down if anywhere
            if pick((best, other) if step > 0 else (other, best)) is best:
                break
            at, trees, best = at + step, others, other
        if at != begun:
            break  # the other neighbour is what was left
    return trees, depths[at]


def tokens_of(first: Sequence[float], later: Sequence[float], parents: Sequence[int]) -> float:
    """Expected tokens of a round with the draft nodes that have `parents`, the bonus included. Siblings stand by rank."""
    return 1.0 + sum(probability for _, probability in nodes_of(first, later, parents))


def nodes_of(first: Sequence[float], later: Sequence[float], parents: Sequence[int]) -> list[tuple[int, float]]:
    """Depth and probability of acceptance of each draft node; see `tokens_of`."""
    levels = _levels(first, later)
    nodes, children = [(0, 1.0)], [0] * (len(parents) + 1)
    for parent in parents:
        depth, reached = nodes[parent]
        chances, rank = levels[min(depth, len(levels) - 1)], children[parent]
        children[parent] = rank + 1
        nodes.append((depth + 1, reached * chances[rank] if rank < len(chances) else 0.0))
    return nodes[1:]


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


def parents_of(first: Sequence[float], later: Sequence[float], chain: bool, chosen: Candidate) -> Sequence[int]:
    """The parent of each draft node of a candidate that is not given, in the order in which a smaller tree keeps them."""
    if chain or chosen.depth == chosen.size:
        return range(chosen.size)
    return _parents(_rounded(first[: chosen.cap]), _rounded(later), chosen.size, chosen.cap)


def _rounded(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(round(value * GRID) / GRID for value in values)


def _levels(first: Sequence[float], later: Sequence[float]) -> list[tuple[float, ...]]:
    """By depth, P(child of rank k is the accepted one), not rising with the rank as long as `later` does not."""
    return [(p, *[share if (share := (1 - p) * of) < p else p for of in later]) for p in first]


@lru_cache(maxsize=1024)
def _candidates(first: tuple[float, ...], later: tuple[float, ...], size: int, cap: int) -> tuple[Candidate, ...]:
    found, tokens, depths, deepest = [], 1.0, [0], 0
    nodes = grow(_levels(first, later), size, cap)
    for count, (parent, probability) in enumerate(nodes, start=1):
        depths.append(depths[parent] + 1)
        deepest = max(deepest, depths[-1])
        tokens += probability
        if count in SIZES or count == len(nodes):
            found.append(Candidate(count, deepest, tokens, cap))
    return tuple(found)


@lru_cache(maxsize=512)
def _parents(first: tuple[float, ...], later: tuple[float, ...], size: int, cap: int) -> tuple[int, ...]:
    return tuple(parent for parent, _ in grow(_levels(first, later), size, cap))


@lru_cache(maxsize=256)
def _shape(first: tuple[float, ...], later: tuple[float, ...], size: int, cap: int) -> TreeShape:
    return TreeShape.from_parents([-1, *_parents(first, later, size, cap)])
