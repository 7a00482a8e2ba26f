"""Tree attention as two batched matmuls: the query heads of a group are packed into the rows of one matrix.

With ``G`` query heads for each KV head, ``[B, Hq, n, D]`` becomes ``[B * Hkv, G * n, D]``: every KV head is read once for
all its queries, through strided views, and no key or value is copied as a whole or repeated.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

WIDENED_BYTES = 2**21
"""Float32 that ``widened`` holds at a time: it stays in the cache, and is enough work for a matmul (1 to 4 MiB take the same)."""


def packed(query: Tensor, key: Tensor, value: Tensor, prefix: int, bias: Tensor | None, scale: float) -> Tensor:
    """``softmax(Q K^T + bias) V`` with two ``bmm``; arguments and result as in ``dispatch.tree_attention``.

    The scores are in the query's dtype before the softmax: right for fp32 and fp64, coarse for bf16 and fp16.
    """
    if not (is_joinable(key) and is_joinable(value)):
        return _row_by_row(query, key, value, prefix, bias, scale)
    pairs, columns = key.shape[0] * key.shape[1], key.shape[2]
    packed_query = (query * scale).reshape(pairs, -1, query.shape[3])
    scores = _scores(packed_query, key.view(pairs, columns, -1))
    weights = _weights(scores, query.shape, prefix, bias)
    return _unpacked(torch.bmm(weights, value.view(pairs, columns, -1)), query.shape, prefix, bias)


def widened(query: Tensor, key: Tensor, value: Tensor, prefix: int, bias: Tensor | None, scale: float) -> Tensor:
    """``packed`` in float32 for bf16 and fp16: a block of columns at a time is widened, used and forgotten.

    For processors that do not multiply in half precision, where the fused kernel is slow. Full precision, and gradients, take
    ``packed``.
    """
    if query.dtype in (torch.float32, torch.float64):
        return packed(query, key, value, prefix, bias, scale)
    wide = None if bias is None else bias.float()
    if torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value)):
        return packed(query.float(), key.float(), value.float(), prefix, wide, scale).to(query.dtype)
    pairs, columns = key.shape[0] * key.shape[1], key.shape[2]
    packed_query = (query.float() * scale).reshape(pairs, -1, query.shape[3])
    scores = packed_query.new_empty(pairs, packed_query.shape[1], columns)
    for start, block in _blocks(key):
        scores.narrow(2, start, block.shape[1]).copy_(_scores(packed_query, block))
    weights = _weights(scores, query.shape, prefix, wide)
    out = weights.new_zeros(pairs, packed_query.shape[1], value.shape[3])
    for start, block in _blocks(value):
        out.baddbmm_(weights.narrow(2, start, block.shape[1]), block)
    return _unpacked(out, query.shape, prefix, bias).to(query.dtype)


def _blocks(buffer: Tensor) -> Iterator[tuple[int, Tensor]]:
    """``[B, H, T, D]`` as first column and float32 ``[B * H, t, D]``, block by block; each overwrites the one before."""
    batch, heads, columns, dim = buffer.shape
    width = max(1, min(columns, WIDENED_BYTES // (4 * batch * heads * dim)))
    room = torch.empty(batch, heads, width, dim, dtype=torch.float32, device=buffer.device)
    for start in range(0, columns, width):
        part = buffer[:, :, start : start + width]
        if part.shape[2] < width:
            room = room.new_empty(part.shape)
        yield start, room.copy_(part).view(batch * heads, -1, dim)


def _scores(packed_query: Tensor, keys: Tensor) -> Tensor:
    """``[P, r, D]`` times ``[P, t, D]``: ``[P, r, t]``, contiguous.

    For long vectors and for a few rows MKL is faster, up to three times, with the keys as the left factor, although what
    comes out has to be turned (measured with MKL 2024.2 on AVX2: it packs the keys into a buffer of its own otherwise).
    """
    rows, dim = packed_query.shape[1:]
    if rows == 1 or dim >= 128 or (dim >= 64 and rows <= 6):
        return torch.bmm(keys, packed_query.transpose(1, 2)).transpose(1, 2).contiguous()
    return torch.bmm(packed_query, keys.transpose(1, 2))


def _weights(scores: Tensor, query_shape: Sequence[int], prefix: int, bias: Tensor | None) -> Tensor:
    """The softmax of ``scores [P, r, T]`` with the bias, in place where autograd allows: nothing larger is written here."""
    batch, heads, nodes, _ = query_shape
    columns = scores.shape[2]
    if bias is not None:
        scores.view(batch, heads, nodes, columns).narrow(3, prefix, columns - prefix).add_(bias)
    return scores.softmax(-1) if scores.requires_grad else torch.softmax(scores, -1, out=scores)


def _unpacked(out: Tensor, query_shape: Sequence[int], prefix: int, bias: Tensor | None) -> Tensor:
    """``[P, r, Dv]`` to ``[B, n, Hq, Dv]``, contiguous; zeros for queries that see nothing."""
    out = out.view(*query_shape[:3], -1)
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
