"""What the last committed queries make of the cache, as policies that choose by them need it: any GQA ratio, ragged rows."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from specplug.kv_policies.base import LayerContext

BLOCK = 2**22  # scores held at once: 16 MiB of float32


def newest_queries(context: LayerContext) -> Tensor:
    """The newest query of every head by the KV head that it reads, times `context.scale`: [B, Hkv, G, D], at least float32."""
    return _grouped(context, 1)[:, :, :, 0]


def group_scores(logits: Tensor, allowed: Tensor) -> Tensor:
    """What the query heads of a group make of N candidates together: `logits` [B, Hkv, G, N], `allowed` [B, N] -> [B, Hkv, N].

    The logarithm of the sum of their softmax weights: each head has one vote to divide, however long its queries are; of a
    single head the order is that of its logits. What is not allowed gets -inf (or NaN, where nothing is).
    """
    return logits.masked_fill(~allowed[:, None, None], -torch.inf).log_softmax(3).logsumexp(2)


def received(context: LayerContext, count: int) -> Tensor:
    """Attention that each position gets from the last `count` committed queries, [B, Hkv, T] float32.

    Softmax over all positions that a query sees (its own is the last), summed over the queries and the query heads of a
    group. Softmax goes along positions, so heads and queries are done in blocks of `BLOCK` scores (at least a query of
    every row and of one group), and nothing is computed twice.
    """
    keys, queries = context.keys, _grouped(context, count)
    rows, heads, group, asked, _ = queries.shape
    width, exact = keys.shape[2], queries.dtype
    position = torch.arange(width, device=keys.device)
    back = torch.arange(asked, 0, -1, device=keys.device)  # 1 is the newest
    own = (context.lengths[:, None] - back).clamp(min=0)[:, None, None, :, None]  # where each query stands
    real = (back <= context.query_counts[:, None])[:, None, None, :, None]
    queries = queries.where(real, 0).to(keys.dtype)  # what is none may be no number
    share = real.to(exact).expand(-1, heads, group, -1, -1)
    total = torch.zeros(rows, heads, width, device=keys.device, dtype=exact)
    for some in _blocks(heads, heads * rows * group * asked * width):
        for part in _blocks(asked, (some.stop - some.start) * rows * group * asked * width):
            logits = (queries[:, some, :, part].flatten(2, 3) @ keys[:, some].mT).to(exact)  # [B, h, G * q, T]
            by_head = torch.unflatten(logits, 2, (group, -1))
            weights = by_head.masked_fill_(position > own[:, :, :, part], -torch.inf).softmax(4).flatten(2, 3)
            total[:, some] += (share[:, some, :, part].flatten(2, 3).mT @ weights)[:, :, 0]
    return total.float()


def _grouped(context: LayerContext, count: int) -> Tensor:
    """The last `count` queries, scaled: [B, Hkv, G, Q, D], at least float32."""
    queries = context.queries[:, :, -count:]
    exact = queries.to(torch.promote_types(queries.dtype, torch.float32))
    return torch.unflatten(exact * context.scale, 1, (context.keys.shape[1], -1))


def _blocks(count: int, scores: int) -> Iterator[slice]:
    """Slices of `count` things that take `scores` in all, so that each takes at most `BLOCK`, or is one thing."""
    size = max(1, count * BLOCK // max(1, scores))
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
