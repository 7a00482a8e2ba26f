"""Which child was the accepted one: counts by rank of one wide level (Sequoia, arXiv 2402.12374, section 4), or of a chain by depth."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from specplug import Round, TreeShape
from specplug.cost.profile import Seen
from specplug.drafters import Drafter
from specplug.trees import Chain
from specplug.trees.sequoia import non_rising

WIDTH = 16  # children of the root
LENGTH = 10  # of a chain, for a drafter that has but one proposal
RARE = 8  # rows and rounds at a depth below which its share says nothing


def wide_level(vocabulary: int) -> TreeShape:
    """The root with its children."""
    return TreeShape((-1, *[0] * min(WIDTH, vocabulary)))


def shape_for(drafter: Drafter, vocabulary: int) -> TreeShape:
    """What a drafter is to fill: a wide level, or a chain if no model tells it a second best."""
    return wide_level(vocabulary) if drafter.drafts_with_model else Chain(LENGTH).build()


@dataclass(slots=True)
class Tally:
    """Counts over rows and rounds. `accepted[n]`: rounds in which n nodes of the chain were; `ranks[k]`: the k-th child was."""

    trials: int = 0
    proposed: int = 0
    ranks: Counter[int] = field(default_factory=Counter)
    accepted: Counter[int] = field(default_factory=Counter)

    def add(self, finished: Round) -> None:
        """One more round."""
        trees, verdict = finished.trees, finished.verdict
        rows = finished.batch.num_rows
        self.trials += rows
        if trees.num_nodes > 1:
            self.proposed += rows if trees.valid is None else int(trees.valid[:, 1].sum())
        for path, taken in zip(verdict.path.tolist(), verdict.accepted, strict=True):
            self.accepted[taken] += 1
            if taken:
                self.ranks[path[1] - 1] += 1

    def by_rank(self, width: int) -> Seen:
        """Of a wide level, made non-rising by isotonic regression."""
        shares = [self.ranks[rank] / self.trials for rank in range(width)]
        return Seen(non_rising(shares), (), self.proposed / self.trials, self.trials)

    def by_depth(self) -> Seen:
        """Of a chain. A row that proposed nothing has failed at the root."""
        depths: list[float] = []
        for depth in range(LENGTH):
            tried = sum(count for taken, count in self.accepted.items() if taken >= depth)
            if tried < RARE and depths:
                break
            depths.append(sum(count for taken, count in self.accepted.items() if taken > depth) / max(1, tried))
        return Seen((depths[0],), tuple(depths), self.proposed / self.trials, self.trials)
