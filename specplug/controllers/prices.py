"""What rounds cost, in a planner's words: arms and trees for a batch."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

from specplug.controllers.base import Arm
from specplug.controllers.trees import Candidate
from specplug.cost.online import OnlineCost, Scale
from specplug.host import Batch
from specplug.round import Round


class Prices:
    """Seconds of whole rounds of `arms` by `cost`, for the batch that `look` was told of.

    `padded_tokens`: tokens that the host's forward computes for rows of these sizes. A row's context is taken for the most
    that it can be: lengths are on the device, and nobody waits for them.
    """

    def __init__(self, cost: OnlineCost, arms: Sequence[Arm], padded_tokens: Callable[[Sequence[int]], int]) -> None:
        self._cost, self._padded_tokens = cost, padded_tokens
        self._budgets = {arm.label: arm.drafter.budget for arm in arms}
        self._plain_label = arms[-1].label
        self._plain: float | None = None
        self._looked_at: Batch | None = None

    def look(self, batch: Batch, situation: Hashable) -> None:
        """Everything is priced for `batch`, and by what was learnt until now."""
        if batch is not self._looked_at:
            self._looked_at = self._batch = batch
            self._situation, self._plain = situation, None

    @property
    def plain(self) -> float:
        """A round that verifies nothing."""
        if self._plain is None:
            self._plain = self._cost.plain(self._plain_round(self._batch), self._situation)
        return self._plain

    def plain_tried(self) -> int:
        """Plain rounds that were measured in this situation."""
        return self._cost.tried(self._plain_round(self._batch), self._situation)

    def plain_settled(self) -> int:
        """Of them, those that were no generation's first ones."""
        return self._cost.settled(self._situation)

    def knows(self) -> bool:
        """Whether rounds of another situation were measured."""
        return self._cost.knows(self._situation)

    def trees(self, arm: Arm, trees: Sequence[Candidate], doubt: float = 0.0) -> list[float]:
        """Rounds in which every row gets the tree, by tree. `doubt`: see `OnlineCost.price`."""
        rows, like = self._batch.num_rows, self._round(arm, self._batch, 0, 0)
        steps = arm.drafter.drafts_with_model
        sizes = [(rows * (tree.size + 1), tree.depth if steps else 0) for tree in trees]
        return self._cost.price(like, sizes, self._situation, doubt)

    def shared(self, arm: Arm, tree: Candidate, count: int) -> float:
        """A round in which all rows together verify `count` draft tokens of `tree`, and no more depth than it has."""
        work = self._round(arm, self._batch, self._batch.num_rows + count, tree.depth)
        return self._cost.seconds(work, self._situation)

    def forward(self, arm: Arm) -> float:
        """A forward of the draft of `arm`, for a token of every row."""
        rows = self._batch.num_rows
        return self._cost.level(self._round(arm, self._batch, 2 * rows, 1), self._situation)

    def observe(self, finished: Round, situation: Hashable, settling: bool) -> None:
        """A round took so long. `settling`: see `OnlineCost.observe`."""
        self._cost.observe(self._work_of(finished), situation, finished.seconds.work, settling)
        self._plain = None

    def excess(self, finished: Round, situation: Hashable) -> float:
        """Seconds that a round took beyond what is believed of its like."""
        return max(0.0, finished.seconds.work - self._cost.seconds(self._work_of(finished), situation))

    def _work_of(self, finished: Round) -> Scale:
        plan, batch = finished.plan, finished.batch
        if finished.trees.num_nodes == 1:
            return self._plain_round(batch)
        if plan.sizes is None:
            tokens = batch.num_rows * finished.trees.num_nodes
        else:
            tokens = self._padded_tokens([size + 1 for size in plan.sizes])
        return self._round(plan.arm, batch, tokens, plan.shape.depth)

    def _plain_round(self, batch: Batch) -> Scale:
        return Scale(self._plain_label, batch.num_rows, batch.num_rows, 0, batch.num_rows * batch.context)

    def _round(self, arm: Arm, batch: Batch, tokens: int, depth: int) -> Scale:
        rows, label = batch.num_rows, arm.label
        steps = depth if arm.drafter.drafts_with_model else 0
        return Scale(label, rows, tokens, steps, rows * batch.context, self._budgets[label])
