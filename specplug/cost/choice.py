"""What to speculate, given a cost model and acceptance: the best chain and KV budget, the best tree, or nothing.

speed-up = tokens a row and round * T_target(1 node) / (T_target(N nodes) + sum of the draft's forwards + overhead).
Chains: MagicDec (arXiv 2408.11049) sweeps the draft's KV budget K, each with its acceptance, and gamma. Trees: adaptive
Sequoia (arXiv 2402.12374, section 3) sweeps nodes and depth. Pure functions of a `CostModel`, fitted or not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Literal

from specplug.cost.base import CostModel, Load
from specplug.trees.base import DEFAULT_ACCEPTANCE
from specplug.trees.sequoia import best_tree as sequoia_tree
from specplug.trees.sequoia import non_rising

Budget = int | None  # KV entries that the draft reads of a row's context; None: all of it
MAX_GAMMA, MAX_SIZE = 12, 64


@dataclass(frozen=True, slots=True)
class Case:
    """Who drafts for which batch: `rows` rows of `context` committed tokens each."""

    cost: CostModel
    drafter: str
    rows: int
    context: int


@dataclass(frozen=True, slots=True)
class Growth:
    """A tree as its cost sees it. `inner[i]`: nodes of level i that have children; `counts[i]`: nodes of level i.

    `expected`: tokens a row and round, the bonus token included.
    """

    expected: float
    inner: tuple[int, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """What to do and what it is predicted to give. `size`: draft tokens; `tokens`: a row and round; `seconds`: a round."""

    kind: Literal["none", "chain", "tree"]
    speedup: float
    size: int
    depth: int
    budget: Budget
    tokens: float
    seconds: float


def best_chain(case: Case, acceptance: Mapping[Budget, float], max_gamma: int = MAX_GAMMA) -> Choice:
    """The chain of 1 to `max_gamma` tokens and the budget with the most speed-up, even if that is below 1.

    `acceptance`: P(a draft token is accepted | those before it were) of each budget.
    """
    return _best(case, "chain", ((budget, chains(rate, max_gamma)) for budget, rate in acceptance.items()))


def best_tree(
    case: Case,
    acceptance: Mapping[Budget, Sequence[float]],
    max_size: int = MAX_SIZE,
    max_depth: int = MAX_GAMMA,
) -> Choice:
    """The Sequoia tree of at most `max_size` draft tokens, and its budget, with the most speed-up, even if below 1.

    `acceptance`: by rank, of each budget; made non-rising as the tree builder does.
    """
    grown = ((budget, trees(non_rising(ranks), max_size, max_depth)) for budget, ranks in acceptance.items())
    return _best(case, "tree", grown)


def nothing(case: Case) -> Choice:
    """Plain decoding."""
    return Choice("none", 1.0, 0, 0, None, 1.0, plain_seconds(case))


def better(*choices: Choice) -> Choice:
    """The fastest; of equally fast ones the first."""
    return max(choices, key=lambda choice: choice.speedup)


def plain_seconds(case: Case) -> float:
    """A step of plain decoding: every row's token reads its context and itself."""
    return case.cost.target(Load(case.rows, case.rows, case.rows * (case.context + 1)))


def round_seconds(case: Case, budget: Budget, grown: Growth) -> float:
    """A round: as many draft forwards as levels, each reading the budget and the tree so far; the verify; overhead."""
    rows, kept = case.rows, read(case.context, budget)
    seconds, so_far = case.cost.overhead(rows), 0
    for expanded, nodes in zip(grown.inner, grown.counts, strict=False):
        so_far += nodes
        seconds += case.cost.draft(case.drafter, Load(rows, rows * expanded, rows * (kept + so_far)))
    nodes = sum(grown.counts)
    return seconds + case.cost.target(Load(rows, rows * nodes, rows * (case.context + nodes)))


def read(context: int, budget: Budget) -> int:
    """KV entries of a row's context that a draft with this budget reads."""
    return context if budget is None else min(context, budget)


def chains(rate: float, longest: int) -> Iterator[Growth]:
    """Chains of 1 to `longest` draft tokens: 1 + a + ... + a^gamma tokens a round."""
    expected = reach = 1.0
    for gamma in range(1, longest + 1):
        reach *= rate
        expected += reach
        yield Growth(expected, (1,) * gamma, (1,) * (gamma + 1))


def trees(acceptance: Sequence[float], size: int, depth: int) -> Iterator[Growth]:
    """The best trees of 1 to `size` draft tokens, for every depth cap up to `depth`."""
    for cap in range(1, min(size, depth) + 1):
        yield from _grown(tuple(acceptance), size, cap)


@lru_cache(maxsize=256)
def _grown(acceptance: tuple[float, ...], size: int, cap: int) -> tuple[Growth, ...]:
    """The best trees of exactly this depth, by size: the first k nodes by priority are the best tree of size k."""
    shape = sequoia_tree(acceptance, size, cap)
    level, reach, children = {0: 0}, {0: 1.0}, dict.fromkeys(range(shape.num_nodes), 0)
    inner, counts, expected, found = [0] * cap, [1] + [0] * cap, 1.0, []
    for node in sorted(range(1, shape.num_nodes), key=lambda node: shape.priority[node]):
        parent = shape.parents[node]
        level[node], reach[node] = level[parent] + 1, reach[parent] * acceptance[children[parent]]
        inner[level[parent]] += children[parent] == 0
        children[parent] += 1
        counts[level[node]] += 1
        expected += reach[node]
        if counts[cap]:  # shallower ones are the best trees of a smaller cap
            found.append(Growth(expected, tuple(inner), tuple(counts)))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Remembering:
    """A cost model that is asked once for each load: thousands of trees share their levels."""

    cost: CostModel
    known: dict[tuple[str | None, Load], float] = field(default_factory=dict)

    def target(self, load: Load) -> float:
        key = (None, load)
        if key not in self.known:
            self.known[key] = self.cost.target(load)
        return self.known[key]

    def draft(self, drafter: str, load: Load) -> float:
        key = (drafter, load)
        if key not in self.known:
            self.known[key] = self.cost.draft(drafter, load)
        return self.known[key]

    def overhead(self, rows: int) -> float:
        return self.cost.overhead(rows)


def _best(case: Case, kind: Literal["chain", "tree"], candidates: Iterable[tuple[Budget, Iterable[Growth]]]) -> Choice:
    case = replace(case, cost=Remembering(case.cost))
    plain, best = plain_seconds(case), None
    for budget, grown in candidates:
        for tree in grown:
            seconds = round_seconds(case, budget, tree)
            speedup = tree.expected * plain / seconds
            if best is None or speedup > best.speedup:
                size, depth = sum(tree.counts) - 1, len(tree.inner)
                best = Choice(kind, speedup, size, depth, budget, tree.expected, seconds)
    return best or nothing(case)


def ranks(rate: float) -> tuple[float, ...]:
    """Acceptance by rank when only the first rank's is known: Sequoia's published tail, scaled to what it leaves."""
    first, *later = DEFAULT_ACCEPTANCE
    return non_rising((rate, *(p * (1 - rate) / (1 - first) for p in later)))


def pays_from(speedup: Callable[[int], float], contexts: Sequence[int]) -> int | None:
    """The first context at which `speedup` exceeds 1: between two of the rising `contexts`, to a token; None: nowhere."""
    below = 0
    for context in contexts:
        if speedup(context) <= 1:
            below = context
            continue
        above = context
        while above - below > 1:
            middle = (above + below) // 2
            below, above = (below, middle) if speedup(middle) > 1 else (middle, above)
        return above
    return None
