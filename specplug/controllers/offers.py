"""What the arms have to offer for a batch: each its best tree, with what it is expected to yield and to take."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import NamedTuple

from specplug.acceptance import Acceptance
from specplug.controllers.base import Arm
from specplug.controllers.beliefs import Beliefs, later_of
from specplug.controllers.option import Option, nothing
from specplug.controllers.prices import ABOUT, Prices
from specplug.controllers.reading import Reading
from specplug.controllers.rows import sizes_by_row
from specplug.controllers.trees import (
    Candidate,
    Priced,
    candidates,
    caps,
    chains,
    climbed,
    entire,
    in_streaks,
    nodes_of,
    parents_of,
    shape_of,
    tokens_of,
)
from specplug.cost.quote import Quote
from specplug.host import Batch

RISK = 1.25  # how much more reading counts than it takes: it is lost if the draft turns out worse than believed
OFF = 1.2  # by which factor plain rounds may take longer or less before an arm's best tree is looked for again
FIRST = 32  # draft tokens over all rows that an untried drafter may propose


class _Kept(NamedTuple):
    """An option that was worked out in `situation`, where a plain round took `plain` seconds and reading `read` a token."""

    option: Option
    situation: Hashable
    plain: float
    read: float

    def now(self, plain: float, read: float, reading: float) -> Option:
        """The same tree, at what it costs by now: rounds take longer or less by as much as plain ones do."""
        option, scale = self.option, plain / self.plain
        if scale == 1.0 and read == self.read:
            return option
        seconds = (option.seconds - self.read * option.tokens) * scale + read * option.tokens
        return option._replace(seconds=seconds, reading=reading)


class Offers:
    """`by_row`: rows of unequal size cost less than padded ones. `pick`: chooses among one drafter's trees."""

    def __init__(
        self,
        beliefs: Beliefs,
        prices: Prices,
        reading: Reading,
        by_row: bool,
        pick: Callable[[Priced], tuple[float, Candidate]],
    ) -> None:
        self._beliefs, self._prices, self._reading, self._by_row, self._pick = beliefs, prices, reading, by_row, pick
        self._kept: dict[tuple[str, bool], _Kept] = {}
        self._depths: dict[tuple[str, bool], int] = {}  # within which the best trees were found the last time

    def option(self, arm: Arm, batch: Batch, doubt: float = 0.0) -> Option | None:
        """`arm` with its best tree; None if it cannot pay here. `doubt` in [0, 1]: how far to believe better of it than was seen."""
        if not arm.shape.size:
            return Option(arm, nothing, 1.0, self._prices.plain)
        if batch.context < arm.min_context or batch.room < 2:
            return None
        reading = self._reading.seconds(arm, batch, self._prices.plain, self._prices.forward)
        if reading is None:
            return None
        plain, read = self._prices.plain, _share(reading, batch)
        key, situation = (arm.label, doubt > 0), self._situation(arm, batch, doubt)
        kept = self._kept.get(key)
        if kept is not None and kept.situation == situation and 1 / OFF <= plain / kept.plain <= OFF:
            return kept.now(plain, read, reading)
        option = self._made(arm, batch, doubt, reading)
        self._kept[key] = _Kept(option, situation, plain, read)
        return option

    def _situation(self, arm: Arm, batch: Batch, doubt: float) -> Hashable:
        """While this stays, so does what was computed: a drafter's trees change little as long as nothing is seen of it."""
        seen, rows, room = self._beliefs.of(arm, batch.sampling), batch.rows, min(batch.room, 16)
        streak = (seen.streaks.tried, seen.streaks.taken) if arm.shape.is_chain and seen.streaks.hold(rows) else None
        return rows, room, batch.context // ABOUT, seen.samples, streak, round(16 * doubt)

    def _made(self, arm: Arm, batch: Batch, doubt: float, reading: float) -> Option:
        plain, seen = self._prices.plain, self._beliefs.of(arm, batch.sampling)
        # what nobody has seen is tried with a small tree: what it costs is a guess too
        size = arm.shape.size if seen.samples else min(arm.shape.size, max(1, FIRST // batch.num_rows))
        first, later, chain = seen.first(doubt, batch.rows), later_of(arm, seen), arm.shape.is_chain
        in_streak = chain and seen.streaks.hold(batch.rows)
        proposing = 1.0 if in_streak else seen.proposing
        # a drafter that finds nothing to propose costs a plain round; what is read once serves all that are left
        quote, idle, read = self._prices.quote(arm, doubt), (1 - proposing) * plain, _share(reading, batch)

        def whole(full: float, tokens: float) -> float:
            return proposing * full + idle + read * tokens

        def priced(trees: Sequence[Candidate]) -> Priced:
            full = self._prices.trees(arm, quote, trees)
            return [(whole(of, tree.tokens), tree) for of, tree in zip(full, trees, strict=True)]

        depth = min(arm.shape.depth, batch.room - 1)
        if arm.drafter.indivisible:
            trees = priced(entire(first, later, arm.shape))
        elif chain:
            found = chains(first, min(size, depth))
            trees = priced(in_streaks(found, seen.streaks, seen.pooled) if in_streak else found)
        else:
            key, depths = (arm.label, doubt > 0), caps(depth)
            trees, self._depths[key] = climbed(
                depths,
                self._depths.get(key, depth),
                lambda cap: priced(candidates(first, later, size, cap)),
                self._pick,
            )
        seconds, tree = self._pick(trees)
        if self._by_row and batch.num_rows > 1 and not doubt and not arm.drafter.indivisible:
            # some rows may get more of it than the best tree for all has, but no draft step more is paid for
            wider = max((t for _, t in trees if t.depth <= tree.depth), key=lambda t: t.size)
            return self._sized(arm, batch, seen, wider, quote, whole)._replace(reading=reading)
        grown = partial(shape_of, first, later, chain, tree)
        tokens = tree.tokens
        if not chain and tree.given is None:  # not for rounded acceptance, as in the choice
            tokens = tokens_of(first[: tree.depth], later, parents_of(first, later, chain, tree))
            seconds += read * (tokens - tree.tokens)
        return Option(arm, grown, tokens, seconds, seen.samples, reading=reading)

    def _sized(
        self,
        arm: Arm,
        batch: Batch,
        seen: Acceptance,
        tree: Candidate,
        quote: Quote,
        whole: Callable[[float, float], float],
    ) -> Option:
        """`arm` with as much of `tree` for each row as pays for that row."""
        first, later, chain, rows = seen.first(), later_of(arm, seen), arm.shape.is_chain, batch.num_rows

        def seconds(count: int) -> float:
            return self._prices.shared(arm, quote, tree, count)

        ratios = [seen.of_row(row) for row in batch.rows]
        nodes = nodes_of(first[: tree.depth], later, parents_of(first, later, chain, tree))
        sizes, tokens = sizes_by_row(nodes, ratios, seconds)
        grown = partial(shape_of, first, later, chain, tree)
        return Option(arm, grown, tokens / rows, whole(seconds(sum(sizes)), tokens / rows), seen.samples, sizes)


def _share(reading: float, batch: Batch) -> float:
    """What reading adds to the price of each token that is left to be written."""
    return RISK * reading / batch.room
