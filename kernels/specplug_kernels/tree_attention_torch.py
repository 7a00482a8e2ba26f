"""Tree attention as two batched matmuls: the query heads of a group are packed into the rows of one matrix.

With ``G`` query heads for each KV head, ``[B, Hq, n, D]`` becomes ``[B * Hkv, G * n, D]``: every KV head is read once for
all its queries, through strided views, and no key or value is copied or repeated.
"""

from __future__ import annotations

import torch
from torch import Tensor


def packed(query: Tensor, key: Tensor, value: Tensor, prefix: int, bias: Tensor | None, scale: float) -> Tensor:
    """``softmax(Q K^T + bias) V`` with two ``bmm``; arguments and result as in ``dispatch.tree_attention``.

    The scores are in the query's dtype before the softmax: right for fp32 and fp64, coarse for bf16 and fp16.
    """
    if not (is_joinable(key) and is_joinable(value)):
        return _row_by_row(query, key, value, prefix, bias, scale)
    batch, heads, nodes, _ = query.shape
    pairs, columns = batch * key.shape[1], key.shape[2]
    rows = heads // key.shape[1] * nodes
    packed_query = (query * scale).reshape(pairs, rows, -1)
    scores = torch.bmm(packed_query, key.view(pairs, columns, -1).transpose(1, 2))
    if bias is not None:
        scores.view(batch, heads, nodes, columns).narrow(3, prefix, columns - prefix).add_(bias)
    # In place where autograd allows: the scores are the largest thing that is written here.
    weights = scores.softmax(-1) if scores.requires_grad else torch.softmax(scores, -1, out=scores)
    out = torch.bmm(weights, value.view(pairs, columns, -1)).view(batch, heads, nodes, -1)
    if bias is not None and prefix == 0:
        out = out.masked_fill(blind_queries(bias), 0.0)
    return out.transpose(1, 2).contiguous()


def is_joinable(buffer: Tensor) -> bool:
    """Whether ``[B, H, T, D]`` can be viewed as ``[B * H, T, D]``."""
    return buffer.stride(0) == buffer.shape[1] * buffer.stride(1) or buffer.shape[0] == 1 or buffer.shape[1] == 1


def blind_queries(bias: Tensor) -> Tensor:
    """Bool ``[B or 1, 1, n, 1]``: the queries that see no column of ``bias`` (with a prefix there are none)."""
    return bias.amax(dim=-1, keepdim=True) == float("-inf")


def _row_by_row(query: Tensor, key: Tensor, value: Tensor, prefix: int, bias: Tensor | None, scale: float) -> Tensor:
    """``packed`` for buffers whose batch and head strides do not join: one call for each row of the batch."""
    outputs = []
    for row in range(query.shape[0]):
        own = slice(row, row + 1)
        own_bias = bias if bias is None or bias.shape[0] == 1 else bias[own]
        outputs.append(packed(query[own], key[own], value[own], prefix, own_bias, scale))
    return torch.cat(outputs)
