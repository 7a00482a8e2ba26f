"""The Triton kernel of paged tree attention: its plan, and its launch."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import torch
import triton
from torch import Tensor

from specplug_kernels.paged_kernel_triton import attend, merge
from specplug_kernels.paged_tiles import (
    MERGED_ROWS,
    choose_splits,
    launch_options,
    merge_launch_options,
    tile_sizes,
    unfit,
    why_not,
)
from specplug_kernels.paging import PagedRows, ScoreRule, check_paged


@dataclass(frozen=True, slots=True)
class TritonPagedAttention:
    """A :class:`~specplug_kernels.paging.PagedAttention` by this kernel."""

    rows: PagedRows
    reason: str
    name: str = field(default="triton", init=False)

    def why_not(self, query: Tensor, key_pages: Tensor, value_pages: Tensor, rule: ScoreRule) -> str | None:
        """What keeps the kernel from serving a layer, as a phrase; ``None`` if nothing does."""
        return _why_not(query, key_pages, value_pages)

    def __call__(self, query: Tensor, key_pages: Tensor, value_pages: Tensor, rule: ScoreRule) -> tuple[Tensor, Tensor]:
        check_paged(query, key_pages, value_pages, self.rows, rule)
        return paged_tree_attention_triton(query, key_pages, value_pages, self.rows, rule)


def paged_tree_attention_triton(
    query: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    rows: PagedRows,
    rule: ScoreRule,
    *,
    num_splits: int | None = None,
) -> tuple[Tensor, Tensor]:
    """As :func:`~specplug_kernels.paged_tree_attention_torch.paged_tree_attention_torch`, for float16, bfloat16 and float32.

    The last dimension of query, keys and values is contiguous, and all three are of one dtype; head dimensions up to
    256. ``num_splits``: into how many parts a row's columns are cut; ``None`` lets
    :func:`~specplug_kernels.paged_tiles.choose_splits` say. Rounding differs with it: the same call gives the same bits.

    Raises:
        ValueError: a dtype, head dimension or stride that the kernel does not take.
    """
    reason = _why_not(query, key_pages, value_pages)
    if reason is not None:
        raise ValueError(f"the Triton kernel cannot serve this call: {reason}; kernel='torch' can")
    batch, queries, heads, dim = query.shape
    _, page, kv_heads, value_dim = value_pages.shape
    groups = heads // kv_heads
    tiles = -(-groups * queries // tile_sizes(groups * queries, max(dim, value_dim), query.element_size())[0])
    if num_splits is None:
        processors = _processors(query.device)
        num_splits = choose_splits(batch * kv_heads * tiles, _columns(rows, page, rule.window), processors)
    out = torch.empty(batch, queries, heads, value_dim, dtype=query.dtype, device=query.device)
    lse = torch.empty(batch, queries, heads, dtype=torch.float32, device=query.device)
    if out.numel() == 0:
        return out, lse
    parts, part_lse = out, lse
    if num_splits > 1:
        parts = torch.empty(num_splits, *out.shape, dtype=torch.float32, device=query.device)
        part_lse = torch.empty(num_splits, *lse.shape, dtype=torch.float32, device=query.device)
    sinks = lse if rule.sinks is None else rule.sinks.float().contiguous()
    bitmap, depths = rows.bitmap.contiguous(), rows.depths.contiguous()
    cap = rule.logit_cap or 0.0
    options = launch_options(
        groups=groups, queries=queries, dim=dim, value_dim=value_dim, page=page, element_size=query.element_size(),
        splits=num_splits, has_cap=cap > 0, has_window=rule.window is not None, has_sinks=rule.sinks is not None,
        widen=interpreted() and query.dtype == torch.bfloat16,
    )  # fmt: skip
    attend[tiles * num_splits, kv_heads, batch](
        query, key_pages, value_pages, rows.page_indptr, rows.page_indices, rows.lengths, bitmap, depths, sinks,
        parts, part_lse, *query.stride()[:3], *key_pages.stride()[:3], *value_pages.stride()[:3],
        bitmap.stride(0) if len(bitmap) > 1 else 0, bitmap.stride(1), depths.stride(0) if len(depths) > 1 else 0,
        queries, rows.num_nodes, tiles, rule.scale / cap if cap else rule.scale, cap, rule.window or 0, **options,
    )  # fmt: skip
    if num_splits > 1:
        merged = batch * queries * heads
        merge_options = merge_launch_options(value_dim, num_splits, rule.sinks is not None)
        merge[(-(-merged // MERGED_ROWS),)](parts, part_lse, sinks, out, lse, merged, heads, **merge_options)
    return out, lse


def _why_not(query: Tensor, key_pages: Tensor, value_pages: Tensor) -> str | None:
    return why_not(query.dtype, max(query.shape[3], value_pages.shape[3])) or unfit(query, key_pages, value_pages)


def interpreted() -> bool:
    """Whether kernels run under Triton's interpreter, on a CPU."""
    return not isinstance(attend, triton.JITFunction)


def _columns(rows: PagedRows, page: int, window: int | None) -> int:
    """Columns of a row, roughly if ``max_length`` is unknown: only the number of splits depends on it."""
    length = rows.max_length
    if length is None:
        length = rows.page_indices.shape[0] * page // max(1, rows.num_rows)
    return rows.num_nodes + (length if window is None else min(length, window))


@functools.lru_cache(maxsize=16)
def _processors(device: torch.device) -> int:
    """Streaming multiprocessors of a device; 1 for a CPU, where the interpreter runs one program after another."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
