"""Attention of tree nodes over a paged KV cache in torch: gather the pages, mask, softmax. The definition, and a fallback."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from specplug_kernels.paging import PagedRows, ScoreRule, ancestors_of, check_paged


@dataclass(frozen=True, slots=True)
class TorchPagedAttention:
    """A :class:`~specplug_kernels.paging.PagedAttention`: what is seen and where it stands, found once for all layers."""

    rows: PagedRows
    reason: str
    name: str = field(default="torch", init=False)
    _seen: dict[tuple[int | None, int], _Seen] = field(default_factory=dict, init=False, repr=False)

    def __call__(self, query: Tensor, key_pages: Tensor, value_pages: Tensor, rule: ScoreRule) -> tuple[Tensor, Tensor]:
        check_paged(query, key_pages, value_pages, self.rows, rule)
        kind = rule.window, key_pages.shape[1]
        if kind not in self._seen:
            self._seen[kind] = _look_up(self.rows, *kind)
        return _attend(query, key_pages, value_pages, self._seen[kind], rule)


def paged_tree_attention_torch(
    query: Tensor, key_pages: Tensor, value_pages: Tensor, rows: PagedRows, rule: ScoreRule
) -> tuple[Tensor, Tensor]:
    """Every asking node over its row's committed tokens, its ancestors and itself.

    Args:
        query: ``[B, q, Hq, D]``, any strides.
        key_pages: ``[pages, page, Hkv, D]``, any strides (a view into a larger pool); ``Hq`` is a multiple of ``Hkv``.
        value_pages: ``[pages, page, Hkv, Dv]``, likewise.
        rows: the batch. If its ``max_length`` is ``None``, the lengths are looked at, which waits for a device.
        rule: scale, cap, window and sinks.

    Returns:
        The output ``[B, q, Hq, Dv]``, contiguous, in the query's dtype, and the natural logarithm of the softmax's denominator (the
        sink included) ``[B, q, Hq]`` in float32 (float64 for float64). The arithmetic is float32, float64 for float64.
        A node that sees nothing gets zeros and ``-inf`` (with sinks: the sink). What stands in slots that no query of the
        row sees has no influence, NaN included. No argument is modified.
    """
    return _attend(query, key_pages, value_pages, _look_up(rows, rule.window, key_pages.shape[1]), rule)


@dataclass(frozen=True, slots=True)
class _Seen:
    """Which of a row's T entries somebody sees, and where they stand in the pools."""

    visible: Tensor  # [B, q, T] bool
    wanted: Tensor  # [B, T] bool: some query of the row sees the entry
    page: Tensor  # [B, T] int64; 0 where it is not wanted
    slot: Tensor  # [T] int64, in its page


def _look_up(rows: PagedRows, window: int | None, page_size: int) -> _Seen:
    """The entries that layers of one window see."""
    visible = visible_columns(rows, window)
    wanted = visible.any(1)
    column = torch.arange(visible.shape[2], device=visible.device)
    place = torch.where(wanted, rows.page_indptr[:-1, None].long() + column // page_size, 0)
    # no page is listed at all: then no row has an entry
    page = rows.page_indices[place].long() if len(rows.page_indices) else place
    return _Seen(visible, wanted, torch.where(wanted, page, 0), column % page_size)


def _attend(
    query: Tensor, key_pages: Tensor, value_pages: Tensor, seen: _Seen, rule: ScoreRule
) -> tuple[Tensor, Tensor]:
    kv_heads = key_pages.shape[2]
    precise = torch.float64 if query.dtype == torch.float64 else torch.float32
    keys, values = _gathered(key_pages, seen, precise), _gathered(value_pages, seen, precise)
    packed = query.to(precise).unflatten(2, (kv_heads, -1))
    scores = torch.einsum("bnhgd,bthd->bnhgt", packed, keys) * rule.scale
    if rule.logit_cap is not None:
        scores = rule.logit_cap * torch.tanh(scores / rule.logit_cap)
    scores = scores.masked_fill(~seen.visible[:, :, None, None], float("-inf"))
    lse = scores.logsumexp(-1)
    if rule.sinks is not None:
        lse = torch.logaddexp(lse, rule.sinks.to(precise).view(kv_heads, -1))
    blind = lse == float("-inf")
    weights = (scores - lse.masked_fill(blind, 0.0)[..., None]).exp()
    out = torch.einsum("bnhgt,bthd->bnhgd", weights, values)
    return out.flatten(2, 3).to(query.dtype).contiguous(), lse.flatten(2, 3)


def visible_columns(rows: PagedRows, window: int | None) -> Tensor:
    """Which entries each query sees: ``[B, q, T]`` bool, where T is the largest length, or ``max_length``, and n more."""
    longest = rows.max_length
    if longest is None:
        longest = int(rows.lengths.max()) if rows.num_rows else 0
    lengths, nodes, queries = rows.lengths.long()[:, None], rows.num_nodes, rows.num_queries
    column = torch.arange(longest + nodes, device=lengths.device)
    node = column - lengths
    index = node.clamp(0, nodes - 1)
    ancestors = ancestors_of(rows.bitmap, nodes).expand(len(lengths), -1, -1)
    seen = ancestors.gather(2, index[:, None].expand(-1, queries, -1))
    in_tree = ((node >= 0) & (node < nodes))[:, None]
    visible = (node < 0)[:, None] | (seen & in_tree)
    if window is None:
        return visible
    depths = rows.depths.long().expand(len(lengths), -1)
    key_positions = torch.where(node < 0, column, lengths + depths.gather(1, index))
    positions = lengths + depths[:, nodes - queries :]
    return visible & (key_positions[:, None] > positions[:, :, None] - window)


def _gathered(pages: Tensor, seen: _Seen, dtype: torch.dtype) -> Tensor:
    """Entries ``[B, T, Hkv, D]`` of every row in ``dtype``; zeros where no query of the row looks."""
    return torch.where(seen.wanted[..., None, None], pages[seen.page, seen.slot].to(dtype), 0.0)
