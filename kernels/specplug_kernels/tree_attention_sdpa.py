"""Tree attention by torch's fused attention, with packed queries; and the same with the prefix unmasked."""

from __future__ import annotations

import threading

import torch
import torch.nn.functional as F
from torch import Tensor

from specplug_kernels.tree_attention_torch import blind_queries


def sdpa(query: Tensor, key: Tensor, value: Tensor, prefix: int, bias: Tensor | None, scale: float) -> Tensor:
    """One ``scaled_dot_product_attention`` whose rows are the queries of a group; as in ``dispatch.tree_attention``.

    The mask covers the prefix too (zeros): ``G * n * T`` numbers a row of the batch. Scores and softmax are fp32 inside.
    """
    batch, heads, nodes, _ = query.shape
    kv_heads = key.shape[1]
    rows = heads // kv_heads * nodes
    packed_query = query if rows == nodes else query.reshape(batch, kv_heads, rows, -1)
    mask = None if bias is None else _full_mask(bias, prefix, heads // kv_heads)
    out = F.scaled_dot_product_attention(packed_query, key, value, attn_mask=mask, scale=scale)
    out = out.view(batch, heads, nodes, -1) if rows != nodes else out
    if bias is not None and prefix == 0 and query.device.type != "cpu":  # the CPU's kernels give zeros by themselves
        out = out.masked_fill(blind_queries(bias), 0.0)
    return out.transpose(1, 2).contiguous()


def split(query: Tensor, key: Tensor, value: Tensor, prefix: int, bias: Tensor | None, scale: float) -> Tensor:
    """The prefix by the CPU's flash kernel without a mask, the tail by matmul, merged by log-sum-exp.

    The prefix enters the tail's softmax as one more column whose score is its log-sum-exp: the weight that column gets
    is the prefix's share. Without a prefix, without a tail, off the CPU or when ``D != Dv`` this is ``sdpa``.
    """
    if bias is None or prefix == 0 or query.device.type != "cpu" or key.shape[3] != value.shape[3]:
        return sdpa(query, key, value, prefix, bias, scale)
    batch, heads, nodes, _ = query.shape
    kv_heads, tail = key.shape[1], key.shape[2] - prefix
    packed_query = query.reshape(batch, kv_heads, heads // kv_heads * nodes, -1)
    precise = torch.promote_types(query.dtype, torch.float32)
    past, past_lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        packed_query, key.narrow(2, 0, prefix), value.narrow(2, 0, prefix), 0.0, False, scale=scale
    )
    scores = (packed_query.to(precise) * scale) @ key.narrow(2, prefix, tail).to(precise).transpose(2, 3)
    scores.view(batch, heads, nodes, tail).add_(bias)
    weights = torch.cat([past_lse.to(precise).unsqueeze(-1), scores], dim=-1).softmax(-1)
    out = weights[..., 1:] @ value.narrow(2, prefix, tail).to(precise)
    out = out.add_(past.to(precise) * weights[..., :1]).to(query.dtype)
    return out.view(batch, heads, nodes, -1).transpose(1, 2).contiguous()


def _full_mask(bias: Tensor, prefix: int, groups: int) -> Tensor:
    """``[B or 1, 1, n, t]`` to ``[B or 1, 1, G * n, prefix + t]``, zeros in front.

    The layers of one forward ask for the same one: the last that was made is kept.
    """
    if groups == 1 and prefix == 0:
        return bias
    known, version = _latest.known, 0 if bias.is_inference() else bias._version
    if known is not None and known[0] is bias and known[1:4] == (prefix, groups, version):
        return known[4]
    batch, _, nodes, tail = bias.shape
    mask = bias.new_zeros(batch, groups, nodes, prefix + tail)
    mask.narrow(3, prefix, tail).copy_(bias)
    mask = mask.view(batch, 1, groups * nodes, prefix + tail)
    _latest.known = (bias, prefix, groups, version, mask)
    return mask


class _Latest(threading.local):
    known: tuple[Tensor, int, int, int, Tensor] | None = None


_latest = _Latest()
