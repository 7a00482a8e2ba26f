"""What rounds cost, in a planner's words: arms and trees for a batch."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

from specplug.controllers.base import Arm
from specplug.controllers.trees import Candidate
from specplug.cost.online import OnlineCost
from specplug.cost.quote import Quote
from specplug.cost.scale import Scale
from specplug.outcome import Outcome

ABOUT = 64  # tokens: contexts are priced in such steps, in the middle of each


class Prices:
    """Seconds of whole rounds of `arms` by `cost`, for a batch like the one that `look` was told of.

    `padded_tokens`: tokens that the host's forward computes for rows of these sizes. A row's context is taken for the most
    that it can be: lengths are on the device, and nobody waits for them.
    """

    def __init__(self, cost: OnlineCost, arms: Sequence[Arm], padded_tokens: Callable[[Sequence[int]], int]) -> None:
        self._cost, self._padded_tokens = cost, padded_tokens
        self._budgets = {arm.label: arm.drafter.budget for arm in arms}
        self._plain_label = arms[-1].label
        self._plain: float | None = None
        self._forwards: dict[str, float] = {}  # by arm
        self._rows = self._context = 0
        self._situation: Hashable = None

    def look(self, rows: int, context: int, situation: Hashable) -> None:
        """Everything is priced for so many rows with about `context` tokens in the cache, and by what was learnt until now."""
        context -= context % ABOUT - ABOUT // 2
        if (rows, context, situation) != (self._rows, self._context, self._situation):
            self._rows, self._context, self._situation = rows, context, situation
            self._forget()

    @property
    def plain(self) -> float:
        """A round that verifies nothing."""
        if self._plain is None:
            self._plain = self._cost.plain(self._plain_round(), self._situation)
        return self._plain

    def plain_tried(self) -> int:
        """Plain rounds that were measured in this situation."""
        return self._cost.tried(self._plain_round(), self._situation)

    def plain_settled(self) -> int:
        """Of them, those that were no generation's first ones."""
        return self._cost.settled(self._situation)

    def knows(self) -> bool:
        """Whether rounds of another situation were measured."""
        return self._cost.knows(self._situation)

    def quote(self, arm: Arm, doubt: float = 0.0) -> Quote:
        """Rounds of `arm`. `doubt`: see `OnlineCost.quote`."""
        return self._cost.quote(self._round(arm, 0, 0), self._situation, doubt)

    def trees(self, arm: Arm, quote: Quote, trees: Sequence[Candidate]) -> list[float]:
        """Rounds of `quote`, which is of `arm`, in which every row gets the tree, by tree."""
        rows, steps = self._rows, _steps(arm, 1)
        return quote.seconds_of([(rows * (tree.size + 1), steps * tree.depth) for tree in trees])

    def shared(self, arm: Arm, quote: Quote, tree: Candidate, count: int) -> float:
        """One in which all rows together verify `count` draft tokens of `tree`, and no more depth than it has."""
        return quote.seconds(self._rows + count, _steps(arm, tree.depth))

    def forward(self, arm: Arm) -> float:
        """A forward of the draft of `arm`, for a token of every row."""
        seconds = self._forwards.get(arm.label)
        if seconds is None:
            seconds = self._cost.level(self._round(arm, 2 * self._rows, 1), self._situation)
            self._forwards[arm.label] = seconds
        return seconds

    def observe(self, outcomes: Sequence[Outcome], settling: bool) -> None:
        """Rounds of the batch that is looked at, alike in all but their luck, took so long. `settling`: see `OnlineCost.observe`."""
        seconds = [outcome.seconds for outcome in outcomes]
        self._cost.observe(self._work_of(outcomes[0]), self._situation, *seconds, settling=settling)
        self._forget()

    def excess(self, outcome: Outcome) -> float:
        """Seconds that such a round took beyond what is believed of its like."""
        return max(0.0, outcome.seconds - self._cost.seconds(self._work_of(outcome), self._situation))

    def _forget(self) -> None:
        """What was worked out is of another batch, or was learnt anew."""
        self._plain = None
        self._forwards.clear()

    def _work_of(self, outcome: Outcome) -> Scale:
        plan = outcome.plan
        if outcome.nodes == 1:
            return self._plain_round()
        if plan.sizes is None:
            tokens = self._rows * outcome.nodes
        else:
            tokens = self._padded_tokens([size + 1 for size in plan.sizes])
        return self._round(plan.arm, tokens, plan.shape.depth)

    def _plain_round(self) -> Scale:
        return Scale(self._plain_label, self._rows, self._rows, 0, self._rows * self._context)

    def _round(self, arm: Arm, tokens: int, depth: int) -> Scale:
        context = self._rows * self._context
        return Scale(arm.label, self._rows, tokens, _steps(arm, depth), context, self._budgets[arm.label])


def _steps(arm: Arm, depth: int) -> int:
    """Forwards of a draft for a tree of `depth`."""
    return depth if arm.drafter.drafts_with_model else 0
