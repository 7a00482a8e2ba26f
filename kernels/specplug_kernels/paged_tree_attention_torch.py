"""Attention of tree nodes over a paged KV cache in torch: gather the pages, mask, softmax. The definition, and a fallback."""

from __future__ import annotations

import torch
from torch import Tensor

from specplug_kernels.paging import PagedRows, ScoreRule, ancestors_of


def paged_tree_attention_torch(
    query: Tensor, key_pages: Tensor, value_pages: Tensor, rows: PagedRows, rule: ScoreRule
) -> tuple[Tensor, Tensor]:
    """Every node over its row's committed tokens, its ancestors and itself.

    Args:
        query: ``[B, n, Hq, D]``, any strides.
        key_pages: ``[pages, page, Hkv, D]``, any strides (a view into a larger pool); ``Hq`` is a multiple of ``Hkv``.
        value_pages: ``[pages, page, Hkv, Dv]``, likewise.
        rows: the batch. If its ``max_length`` is ``None``, the lengths are looked at, which waits for a device.
        rule: scale, cap, window and sinks.

    Returns:
        The output ``[B, n, Hq, Dv]``, contiguous, in the query's dtype, and the natural logarithm of the softmax's denominator (the
        sink included) ``[B, n, Hq]`` in float32 (float64 for float64). The arithmetic is float32, float64 for float64.
        A node that sees nothing gets zeros and ``-inf`` (with sinks: the sink). What stands in slots that no node of the
        row sees has no influence, NaN included. No argument is modified.
    """
    kv_heads = key_pages.shape[2]
    precise = torch.float64 if query.dtype == torch.float64 else torch.float32
    visible = visible_columns(rows, rule.window)
    keys, values = _gathered(key_pages, visible, rows, precise), _gathered(value_pages, visible, rows, precise)
    packed = query.to(precise).unflatten(2, (kv_heads, -1))
    scores = torch.einsum("bnhgd,bthd->bnhgt", packed, keys) * rule.scale
    if rule.logit_cap is not None:
        scores = rule.logit_cap * torch.tanh(scores / rule.logit_cap)
    scores = scores.masked_fill(~visible[:, :, None, None], float("-inf"))
    lse = scores.logsumexp(-1)
    if rule.sinks is not None:
        lse = torch.logaddexp(lse, rule.sinks.to(precise).view(kv_heads, -1))
    blind = lse == float("-inf")
    weights = (scores - lse.masked_fill(blind, 0.0)[..., None]).exp()
    out = torch.einsum("bnhgt,bthd->bnhgd", weights, values)
    return out.flatten(2, 3).to(query.dtype).contiguous(), lse.flatten(2, 3)


def visible_columns(rows: PagedRows, window: int | None) -> Tensor:
    """Which entries each node sees: ``[B, n, T]`` bool, where T is the largest length, or ``max_length``, and n more."""
    longest = rows.max_length
    if longest is None:
        longest = int(rows.lengths.max()) if rows.num_rows else 0
    lengths, nodes = rows.lengths.long()[:, None], rows.num_nodes
    column = torch.arange(longest + nodes, device=lengths.device)
    node = column - lengths
    index = node.clamp(0, nodes - 1)
    ancestors = ancestors_of(rows.bitmap).expand(len(lengths), -1, -1)
    seen = ancestors.gather(2, index[:, None].expand(-1, nodes, -1))
    in_tree = ((node >= 0) & (node < nodes))[:, None]
    visible = (node < 0)[:, None] | (seen & in_tree)
    if window is None:
        return visible
    depths = rows.depths.long().expand(len(lengths), -1)
    key_positions = torch.where(node < 0, column, lengths + depths.gather(1, index))
    return visible & (key_positions[:, None] > (lengths + depths)[:, :, None] - window)


def _gathered(pages: Tensor, visible: Tensor, rows: PagedRows, dtype: torch.dtype) -> Tensor:
    """Entries ``[B, T, Hkv, D]`` of every row in ``dtype``; zeros where no node of the row looks."""
    size = pages.shape[1]
    column = torch.arange(visible.shape[2], device=pages.device)
    wanted = visible.any(1)
    place = torch.where(wanted, rows.page_indptr[:-1, None].long() + column // size, 0)
    page = torch.where(wanted, _looked_up(rows.page_indices, place), 0)
    found = pages[page, column % size].to(dtype)
    return torch.where(wanted[..., None, None], found, 0.0)


def _looked_up(page_indices: Tensor, place: Tensor) -> Tensor:
    """``page_indices[place]``; zeros if no page is listed at all (then no row has an entry)."""
    return page_indices[place].long() if len(page_indices) else torch.zeros_like(place)
