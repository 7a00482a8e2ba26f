"""`retrieval`: the chunks whose mean keys suit the newest query (TriForce, arXiv 2404.11912)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from specplug.errors import OptionError
from specplug.kv_policies.attention import group_scores, newest_queries
from specplug.kv_policies.base import ChoosingPolicy, LayerContext, best_positions, check_budget
from specplug.kv_policies.positions import keys_at, widened


@dataclass(frozen=True, slots=True)
class Retrieval(ChoosingPolicy):
    """The last `window` positions, and by layer and KV head the chunks that the newest query would look at.

    The text is cut into chunks of `chunk` positions; a chunk stands for the mean of its (rotated) keys. As in TriForce the
    first chunk, where the attention sinks are, is always taken. The query heads of a group vote by their softmax weights over
    the chunks: with TriForce's plain dot products the head with the longest queries would outvote the others; for a
    single head the order is the same. If `chunk` does not divide `budget - window`, the last chunk is taken in part.

    A choice reads one mean for every `chunk` keys; means are computed once, when a chunk is whole.
    """

    budget: int = 512
    window: int = 64
    chunk: int = 8
    refresh: int = 8

    def __post_init__(self) -> None:
        check_budget("retrieval", self.budget, self.window, self.refresh)
        if not 1 <= self.chunk <= self.anchors:
            raise OptionError(
                f"retrieval: chunk={self.chunk} must be at least 1 and at most budget - window = {self.anchors}."
            )

    def open(self) -> _Library:
        return _Library(self)


class _Library:
    """Mean keys of every layer's chunks."""

    def __init__(self, policy: Retrieval) -> None:
        self._policy = policy
        self._layers: dict[int, _ChunkMeans] = {}

    def choose(self, context: LayerContext) -> Tensor:
        """As `Chooser.choose`; waits for the device once, to learn how many chunks are new."""
        chunk, count = self._policy.chunk, self._policy.anchors
        means = self._means(context)
        # a chunk that reaches into the window may be chosen too, or its first positions would be in neither
        begun = (context.choices + chunk - 1) // chunk
        candidates = begun.minimum(context.lengths // chunk)  # [B]
        allowed = torch.arange(means.shape[2], device=means.device) < candidates[:, None]
        queries = newest_queries(context)
        scores = group_scores(queries @ means.to(queries.dtype).mT, allowed)
        scores[:, :, :1] = torch.inf
        best = best_positions(scores, candidates, -(-count // chunk))[..., None]  # [B, Hkv, n, 1]
        position = best * chunk + torch.arange(chunk, device=best.device)
        readable = (best >= 0) & (position < context.choices[:, None, None, None])
        return position.where(readable, -1).flatten(2)[:, :, :count]

    def keep_rows(self, rows: Sequence[int]) -> None:
        for means in self._layers.values():
            means.keep_rows(rows)

    def _means(self, context: LayerContext) -> Tensor:
        """Mean keys [B, Hkv, C, D]; of row b those of its whole chunks are real."""
        known = self._layers.get(context.layer)
        if known is None:
            known = self._layers[context.layer] = _ChunkMeans(context.keys, self._policy.chunk)
        known.learn(context.keys, context.lengths // self._policy.chunk)
        return known.means[:, :, :-1]


class _ChunkMeans:
    """Mean keys of one layer's chunks, `means` [B, Hkv, C + 1, D]: the last slot takes what is not to be kept."""

    def __init__(self, keys: Tensor, chunk: int) -> None:
        rows, heads, _, width = keys.shape
        self.means = keys.new_zeros(rows, heads, 1, width)
        self._known = torch.zeros(rows, dtype=torch.int64, device=keys.device)
        self._chunk = chunk

    def learn(self, keys: Tensor, whole: Tensor) -> None:
        """Compute the means that are missing of each row's first `whole` [B] chunks."""
        missing = int((whole - self._known).max())
        if missing <= 0:
            return
        self.means = widened(self.means, keys.shape[2] // self._chunk + 1, dim=2)
        index = self._known[:, None] + torch.arange(missing, device=keys.device)  # [B, n]
        position = index[..., None] * self._chunk + torch.arange(self._chunk, device=keys.device)
        fresh = torch.unflatten(keys_at(keys, position.flatten(1)), 2, (missing, self._chunk)).mean(3)
        slots = index.where(index < whole[:, None], self.means.shape[2] - 1)
        self.means.scatter_(2, slots[:, None, :, None].expand_as(fresh), fresh)
        self._known = whole

    def keep_rows(self, rows: Sequence[int]) -> None:
        chosen = torch.tensor(rows, dtype=torch.int64, device=self.means.device)
        self.means, self._known = self.means[chosen], self._known[chosen]
