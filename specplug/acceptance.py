"""What has been seen of a drafter's acceptance: by depth for the most likely child, by rank for the others.

`first[d]` = P(the first child is the accepted one | its parent, at depth d, was accepted); `later[k]` = P(the child of
rank k + 1 is | the first is not). Sequoia's vector (arXiv 2402.12374, section 3) is `first` without its dependence on
depth and `(1 - first) * later`; depth matters where a proposal is good or bad as a whole, as with n-grams.

SmartSpec (arXiv 2406.14066) keeps one number a batch; here a row's own rate is shrunk to the batch's.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from specplug.hindsight import Hindsight
from specplug.outcome import Outcome
from specplug.row_acceptance import RowAcceptance, odds_ratio, scaled
from specplug.streaks import Streaks
from specplug.tree import TreeShape
from specplug.trees.base import DEFAULT_ACCEPTANCE
from specplug.trees.sequoia import non_rising

DEPTHS, RANKS = 12, 8
_LATER = tuple(p / (1 - DEFAULT_ACCEPTANCE[0]) for p in DEFAULT_ACCEPTANCE[1:])


@dataclass(slots=True)
class Acceptance:
    """Counts that fade: a round counts for `fading` of itself when the next one has been seen.

    `prior` is what is believed of the first child before anything was seen, and `weight` how many trials that belief
    is worth.
    """

    prior: float = 0.6
    weight: float = 4.0
    fading: float = 0.985
    later_prior: Sequence[float] = _LATER
    tried: list[float] = field(default_factory=lambda: [0.0] * DEPTHS)
    taken: list[float] = field(default_factory=lambda: [0.0] * DEPTHS)
    missed: list[float] = field(
        default_factory=lambda: [0.0] * RANKS
    )  # the first was not taken, and there was a rank k + 1
    later: list[float] = field(default_factory=lambda: [0.0] * RANKS)
    rows: RowAcceptance = field(default_factory=RowAcceptance)
    proposing: float = 1.0  # share of the rounds in which anything was proposed for any row
    streaks: Streaks = field(default_factory=Streaks)

    @property
    def samples(self) -> float:
        """Trials at the root that still count: rows and rounds."""
        return self.tried[0]

    @property
    def pooled(self) -> float:
        """P(first child taken) at any depth."""
        return (sum(self.taken) + self.weight * self.prior) / (sum(self.tried) + self.weight)

    def first(self, doubt: float = 0.0, rows: Sequence[Hashable] = ()) -> list[float]:
        """P(first child taken) by depth. `rows`: of which rows; else of all, whenever seen. `doubt` in [0, 1]: how far
        towards certainty to lean."""
        pooled = self.pooled
        found = [
            (taken + self.weight * pooled) / (tried + self.weight)
            for tried, taken in zip(self.tried, self.taken, strict=True)
        ]
        if rows:
            ratio = odds_ratio(self.rows.level(rows, pooled), pooled)
            found = [scaled(p, ratio) for p in found]
        return [p + (1 - p) * doubt for p in found] if doubt else found

    def others(self) -> list[float]:
        """P(child of rank k + 1 taken | the first was not), not rising with k."""
        believed = zip(self.missed, self.later, self.later_prior, strict=False)
        shares = [(taken + 2 * self.weight * prior) / (tried + 2 * self.weight) for tried, taken, prior in believed]
        return list(non_rising(shares))

    def of_row(self, row: Hashable) -> float:
        """A row's rate over that of all: below 1 for a row whose text is harder."""
        if not sum(self.tried):
            return 1.0
        pooled = self.pooled
        return self.rows.rate(row, pooled, 2 * self.weight) / pooled

    def observe(self, *outcomes: Outcome) -> None:
        """Count what became of rounds' trees, in their order; all of one plan for the same rows. A row that proposed less than was
        planned has failed where it stopped."""
        plan, rows = outcomes[0].plan, outcomes[0].rows
        sizes = plan.sizes or (plan.shape.size,) * len(rows)
        for weight, outcome in zip(self._fade(len(outcomes)), outcomes, strict=True):
            self.proposing += 0.1 * ((outcome.nodes > 1) - self.proposing)
            ranks = outcome.ranks or (None,) * len(rows)
            for row, size, accepted, which in zip(rows, sizes, outcome.accepted, ranks, strict=True):
                if size:
                    self._count(row, plan.shape, size, accepted, which, weight)

    def rehearsed(self, rows: Sequence[Hashable], shape: TreeShape, known: Sequence[int], hindsight: Hindsight) -> None:
        """Count what would have become of `shape` in places from which only `known` tokens of the text were compared.

        Of the rows of one batch, several times over: each time counts as a round.
        """
        taken, proposed, ranks = hindsight
        several = len(rows)
        for place, (length, limit) in enumerate(zip(taken, known, strict=True)):
            row = rows[place % several]
            if place % several == 0:
                self._fade()
                self.proposing += 0.1 * (any(proposed[place : place + several]) - self.proposing)
            seen = shape.cut(limit)  # what lies beyond has neither failed nor been taken
            if seen.size:
                self._count(row, seen, seen.size, min(length, limit), None if ranks is None else ranks[place])

    def forget(self, rows: Iterable[Hashable]) -> None:
        """These rows have left."""
        self.streaks.forget(rows)
        self.rows.forget(rows)

    def _fade(self, rounds: int = 1) -> list[float]:
        """What was seen before counts less by so many `rounds`; what each of them counts for when all have been seen."""
        siblings = (self.missed, self.later) if self.missed[0] else ()  # chains have none
        faded = self.fading**rounds
        for counts in (self.tried, self.taken, *siblings):
            counts[:] = [count * faded for count in counts]
        return [self.fading**later for later in range(rounds - 1, -1, -1)]

    def _count(
        self,
        row: Hashable,
        shape: TreeShape,
        size: int,
        accepted: int,
        ranks: Sequence[int] | None = None,
        weight: float = 1.0,
    ) -> None:
        """A row had `size` draft tokens of `shape`, and `accepted` of them were. `ranks`: which child of its parent each is; None: the
        first."""
        if shape.is_chain:
            tried = min(accepted + 1, size, DEPTHS)
            taken = min(accepted, tried)
            for depth in range(taken):
                self.taken[depth] += weight
        else:
            tried, taken = self._siblings(shape, size, ranks[:accepted] if ranks else (0,) * accepted, weight)
        for depth in range(tried):
            self.tried[depth] += weight
        self.rows.observe(row, tried, taken, self.fading)

    def _siblings(self, shape: TreeShape, size: int, path: Sequence[int], weight: float) -> tuple[int, int]:
        """Count what was taken of a tree; at how many nodes there was a choice, and where the first child was taken."""
        node, tried, taken, children = 0, 0, 0, children_within(shape, size)
        while tried < DEPTHS and (below := children[node]):
            rank = path[tried] if tried < len(path) else None
            if rank == 0:
                self.taken[tried] += weight
                taken += 1
            else:
                for k in range(min(len(below) - 1, RANKS)):
                    self.missed[k] += weight
                if rank is not None and rank <= RANKS:
                    self.later[rank - 1] += weight
            tried += 1
            if rank is None:
                break
            node = below[rank] if rank < len(below) else 0  # a drafter may propose another tree than it was asked for
        return tried, taken


@lru_cache(maxsize=512)
def children_within(shape: TreeShape, size: int) -> tuple[tuple[int, ...], ...]:
    """By node, its children in the tree of `size` draft tokens that `shape` begins with."""
    found: list[list[int]] = [[] for _ in shape.parents]
    for node, parent in enumerate(shape.parents[1:], start=1):
        if shape.priority[node] <= size:
            found[parent].append(node)
    return tuple(map(tuple, found))
