"""Tree attention and norms in plain words: the definitions that every backend is tested against."""

from __future__ import annotations

import torch
from torch import Tensor


def tree_attention_reference(
    query: Tensor, key: Tensor, value: Tensor, *, prefix: int, bias: Tensor | None, scale: float
) -> Tensor:
    """Attention with the key and value heads repeated and the whole bias written out.

    Args:
        query: ``[B, Hq, n, D]``.
        key: ``[B, Hkv, T, D]``, ``Hq`` a multiple of ``Hkv``.
        value: ``[B, Hkv, T, Dv]``.
        prefix: columns ``[0, prefix)`` are visible to every query.
        bias: additive, ``[B or 1, 1, n, T - prefix]``, for the columns ``[prefix, T)``; ``None`` if ``prefix == T``.
        scale: factor on the dot products.

    Returns:
        ``[B, n, Hq, Dv]``, contiguous, in the query's dtype. A query that sees no column gets zeros. The arithmetic is
        fp64 for fp64 and fp32 for everything else. Nothing is modified.
    """
    groups = query.shape[1] // key.shape[1]
    precise = torch.float64 if query.dtype == torch.float64 else torch.float32
    keys = key.to(precise).repeat_interleave(groups, dim=1)
    values = value.to(precise).repeat_interleave(groups, dim=1)
    scores = query.to(precise) @ keys.transpose(-1, -2) * scale
    if bias is not None:
        visible_prefix = bias.new_zeros(*bias.shape[:-1], prefix)
        scores = scores + torch.cat([visible_prefix, bias], dim=-1)
    blind = (scores == float("-inf")).all(dim=-1, keepdim=True)
    weights = scores.softmax(dim=-1).masked_fill(blind, 0.0)
    return (weights @ values).to(query.dtype).transpose(1, 2).contiguous()


def rms_norm_reference(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Division by the root mean square, then a weight, as Llama and its relatives have it.

    Args:
        x: ``[..., D]``.
        weight: ``[D]``, of the dtype of ``x``.
        epsilon: added to the mean of squares.

    Returns:
        ``[..., D]`` in the dtype of ``x``, to which what was divided is rounded before it is multiplied. The arithmetic is fp64 for
        fp64 and fp32 for everything else. Nothing is modified.
    """
    precise = x.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
    divided = precise * torch.rsqrt(precise.square().mean(-1, keepdim=True) + epsilon)
    return weight * divided.to(x.dtype)
