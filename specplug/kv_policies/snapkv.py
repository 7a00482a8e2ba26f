"""`snapkv`: the positions that the last queries look at (SnapKV, arXiv 2404.14469; MagicDec, arXiv 2408.11049)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d

from specplug.errors import OptionError
from specplug.kv_policies.attention import received
from specplug.kv_policies.base import ChoosingPolicy, LayerContext, best_positions, check_budget

OBSERVED = 32  # queries that are looked at: the length of the observation window in both papers


@dataclass(frozen=True, slots=True)
class SnapKV(ChoosingPolicy):
    """The last `window` positions, and by layer and KV head the `budget - window` that get most of their attention.

    Softmax over everything that a query sees, summed over the last `window` queries
    (at most 32) and the query heads of a group, averaged over `pool` neighbours so that what is found comes with its context.

    `refresh`: both papers choose once, behind the prompt (0); chosen anew every 8 rounds, a draft of chains of three (at
    most four tokens a round) leaves no token unread between two choices. With a longer period choose a longer window.
    A choice reads every key of the layer once and takes about as long as attention of 32 queries to the whole cache: spread over
    8 rounds, four more nodes in each verify.
    """

    budget: int = 512
    window: int = 32
    pool: int = 5
    refresh: int = 8
    queries: ClassVar[int] = OBSERVED

    def __post_init__(self) -> None:
        check_budget("snapkv", self.budget, self.window, self.refresh)
        if self.pool < 1 or self.pool % 2 == 0:
            raise OptionError(f"snapkv: pool={self.pool} must be odd and at least 1; use pool=1 for none.")

    def open(self) -> _Observation:
        return _Observation(self)


class _Observation:
    """It remembers nothing: every choice looks at the whole cache."""

    def __init__(self, policy: SnapKV) -> None:
        self._policy = policy

    def choose(self, context: LayerContext) -> Tensor:
        policy = self._policy
        attention = received(context, min(policy.window, OBSERVED))
        position = torch.arange(attention.shape[2], device=attention.device)
        attention.masked_fill_(position >= context.choices[:, None, None], 0)  # the window's share lifts no neighbour
        pooled = avg_pool1d(attention, policy.pool, stride=1, padding=policy.pool // 2)
        return best_positions(pooled, context.choices, policy.anchors)

    def keep_rows(self, rows: Sequence[int]) -> None:
        pass
