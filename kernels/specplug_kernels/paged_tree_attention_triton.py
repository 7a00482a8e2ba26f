# ruff: noqa: N803  (Triton writes constants in capitals)
"""Attention of tree nodes over a paged KV cache by Triton: a long prefix read once, in splits, then the tree behind it.

The rows of a tile are the nodes of a tree times the query heads that share a KV head, so keys and values are read once
for all of them. The columns of a row (its committed tokens, then its tree) are cut into splits that run side by side and
are merged by their log-sum-exp (flash-decoding: Dao, Haziza, Massa, Sizov, 2023). Blocks of committed tokens have no mask;
blocks that reach into the tree read the ancestor bitmap. Nothing is read back from the device, and the size of the grid
depends on shapes and on ``max_length`` only. Scores, softmax and sums are float32.

Under the interpreter (``TRITON_INTERPRET=1``) bfloat16 ``tl.dot`` multiplies bit patterns, so there operands are widened to
float32 first; float16 and float32 run as they are.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from specplug_kernels.paged_tiles import (
    MERGED_ROWS,
    choose_splits,
    launch_options,
    merge_launch_options,
    tile_sizes,
    unfit,
    why_not,
)
from specplug_kernels.paging import PagedRows, ScoreRule

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _block(
    c, m, total, acc, q, keys, values, page_indices, bitmap, depths, page_start, length, num_nodes, node, position, window,
    score_scale, cap, key_page, key_slot, value_page, value_slot, bitmap_node,
    IN_TREE: tl.constexpr, HAS_CAP: tl.constexpr, HAS_WINDOW: tl.constexpr, PAGE: tl.constexpr, HEAD_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Columns ``[c, c + BLOCK_N)`` added to the running maximum ``m``, ``total`` and ``acc`` (scores in powers of two)."""
    column = c + tl.arange(0, BLOCK_N)
    dim = tl.arange(0, BLOCK_D)
    value_dim = tl.arange(0, BLOCK_V)
    visible = tl.full(node.shape + column.shape, 1, tl.int1)
    key_position = column
    if IN_TREE:
        in_tree = (column >= length) & (column < length + num_nodes)
        column_node = tl.where(in_tree, column - length, 0)
        words = bitmap + node[:, None] * bitmap_node + (column_node // 32)[None, :]
        word = tl.load(words, mask=(node < num_nodes)[:, None] & in_tree[None, :], other=0)
        seen = ((word >> (column_node % 32)[None, :]) & 1) != 0
        visible = (column < length)[None, :] | (in_tree[None, :] & seen)
        if HAS_WINDOW:
            key_position = tl.where(in_tree, length + tl.load(depths + column_node), column)
    if HAS_WINDOW:
        visible = visible & (key_position[None, :] > position[:, None] - window)
    # What no node of this tile sees is not read: it may be anything, NaN too, which no weight of zero would silence.
    if IN_TREE or HAS_WINDOW:
        wanted = tl.max((visible & (node < num_nodes)[:, None]).to(tl.int32), axis=0) > 0
    else:
        wanted = tl.full(column.shape, 1, tl.int1)
    page = tl.load(page_indices + page_start + column // PAGE, mask=wanted, other=0).to(tl.int64)
    slot = column % PAGE
    key = tl.load(
        keys + (page * key_page + slot * key_slot)[None, :] + dim[:, None],
        mask=wanted[None, :] & (dim < HEAD_DIM)[:, None],
        other=0.0,
    )
    value = tl.load(
        values + (page * value_page + slot * value_slot)[:, None] + value_dim[None, :],
        mask=wanted[:, None] & (value_dim < VALUE_DIM)[None, :],
        other=0.0,
    )
    if WIDEN:
        key, value = key.to(tl.float32), value.to(tl.float32)
    scores = tl.dot(q, key, input_precision="ieee") * score_scale
    if HAS_CAP:
        # cap * tanh(s / cap) by exp alone, which cannot overflow; the score_scale has 1 / cap in it then
        small = tl.exp(-2.0 * tl.abs(scores))
        scores = tl.where(scores < 0, -LOG2_E, LOG2_E) * cap * ((1.0 - small) / (1.0 + small))
    else:
        scores = scores * LOG2_E
    scores = tl.where(visible, scores, float("-inf"))
    m_new = tl.maximum(m, tl.max(scores, axis=1))
    base = tl.where(m_new == float("-inf"), 0.0, m_new)
    weights = tl.exp2(scores - base[:, None])
    shrink = tl.exp2(m - base)
    total = total * shrink + tl.sum(weights, axis=1)
    acc = acc * shrink[:, None] + tl.dot(weights.to(value.dtype), value, input_precision="ieee")
    return m_new, total, acc


@triton.jit
def _finish(m, total, acc, sink, HAS_SINKS: tl.constexpr):
    """The output and the log-sum-exp in powers of two, the ``sink`` (natural logits) in the denominator."""
    if HAS_SINKS:
        sink = sink * LOG2_E
        m_new = tl.maximum(m, sink)
        base = tl.where(m_new == float("-inf"), 0.0, m_new)
        shrink = tl.exp2(m - base)
        total = total * shrink + tl.exp2(sink - base)
        acc = acc * shrink[:, None]
        m = m_new
    lse = tl.where(total > 0, m + tl.log2(tl.where(total > 0, total, 1.0)), float("-inf"))
    return acc / tl.where(total > 0, total, 1.0)[:, None], lse


@triton.jit
def _attend(
    query, keys, values, page_indptr, page_indices, lengths, bitmap, depths, sinks, out, lse_out,
    query_row, query_node, query_head, key_page, key_slot, key_head, value_page, value_slot, value_head,
    bitmap_row, bitmap_node, depth_row, num_nodes, tiles, score_scale, cap, window,
    GROUPS: tl.constexpr, SPLITS: tl.constexpr, HAS_CAP: tl.constexpr, HAS_WINDOW: tl.constexpr, HAS_SINKS: tl.constexpr,
    PAGE: tl.constexpr, HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """One tile of (node, head) rows over one split of a row's columns. Grid: tiles * splits, KV heads, batch.

    ``out`` and ``lse_out`` are the call's own results if there is one split, else ``[splits, B, n, Hq(, Dv)]`` float32.
    """
    tile, split = tl.program_id(0) % tiles, tl.program_id(0) // tiles
    kv_head, batch = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    heads = tl.num_programs(1) * GROUPS
    row = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    node = row // GROUPS
    head = kv_head * GROUPS + row % GROUPS
    real = node < num_nodes
    dim = tl.arange(0, BLOCK_D)
    value_dim = tl.arange(0, BLOCK_V)

    q = tl.load(
        query + batch * query_row + (node * query_node + head * query_head)[:, None] + dim[None, :],
        mask=real[:, None] & (dim < HEAD_DIM)[None, :],
        other=0.0,
    )
    if WIDEN:
        q = q.to(tl.float32)
    length = tl.load(lengths + batch).to(tl.int32)
    page_start = tl.load(page_indptr + batch).to(tl.int64)
    position = length + node
    low = 0
    if HAS_WINDOW:
        position = length + tl.load(depths + batch * depth_row + node, mask=real, other=0)
        low = tl.maximum(length - window + 1, 0) // BLOCK_N * BLOCK_N  # the root's window reaches back furthest

    # The columns from `low` on in whole blocks, an equal share a split; the last may get fewer, or none.
    end = length + num_nodes
    share = tl.cdiv(tl.cdiv(end - low, BLOCK_N), SPLITS) * BLOCK_N
    start = low + split * share
    stop = tl.minimum(start + share, end)
    prefix = length // BLOCK_N * BLOCK_N

    m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_V], tl.float32)
    keys += kv_head * key_head
    values += kv_head * value_head
    bitmap += batch * bitmap_row
    depths += batch * depth_row
    for c in range(start, tl.minimum(stop, prefix), BLOCK_N):
        m, total, acc = _block(
            c, m, total, acc, q, keys, values, page_indices, bitmap, depths, page_start, length, num_nodes, node, position,
            window, score_scale, cap, key_page, key_slot, value_page, value_slot, bitmap_node,
            False, HAS_CAP, HAS_WINDOW, PAGE, HEAD_DIM, VALUE_DIM, BLOCK_N, BLOCK_D, BLOCK_V, WIDEN,
        )  # fmt: skip
    for c in range(tl.maximum(start, prefix), stop, BLOCK_N):
        m, total, acc = _block(
            c, m, total, acc, q, keys, values, page_indices, bitmap, depths, page_start, length, num_nodes, node, position,
            window, score_scale, cap, key_page, key_slot, value_page, value_slot, bitmap_node,
            True, HAS_CAP, HAS_WINDOW, PAGE, HEAD_DIM, VALUE_DIM, BLOCK_N, BLOCK_D, BLOCK_V, WIDEN,
        )  # fmt: skip

    place = (batch * num_nodes + node) * heads + head
    sink = tl.zeros([BLOCK_M], tl.float32)
    if SPLITS == 1:
        if HAS_SINKS:
            sink = tl.load(sinks + head)
        result, lse = _finish(m, total, acc, sink, HAS_SINKS)
        lse = lse / LOG2_E
    else:
        place += split * tl.num_programs(2).to(tl.int64) * num_nodes * heads
        result, lse = _finish(m, total, acc, sink, False)
    written = real[:, None] & (value_dim < VALUE_DIM)[None, :]
    tl.store(out + place[:, None] * VALUE_DIM + value_dim[None, :], result.to(out.dtype.element_ty), mask=written)
    tl.store(lse_out + place, lse, mask=real)


@triton.jit
def _merge(
    parts, part_lse, sinks, out, lse_out, rows, heads,
    SPLITS: tl.constexpr, HAS_SINKS: tl.constexpr, VALUE_DIM: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """The splits of BLOCK_R rows (a node and a head) into one: ``parts [splits, rows, Dv]`` weighted by ``part_lse``."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    real = row < rows
    value_dim = tl.arange(0, BLOCK_V)
    written = real[:, None] & (value_dim < VALUE_DIM)[None, :]
    m = tl.full([BLOCK_R], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_R], tl.float32)
    acc = tl.zeros([BLOCK_R, BLOCK_V], tl.float32)
    for split in range(SPLITS):
        place = split * rows + row
        lse = tl.load(part_lse + place, mask=real, other=float("-inf"))
        part = tl.load(parts + place[:, None] * VALUE_DIM + value_dim[None, :], mask=written, other=0.0)
        m_new = tl.maximum(m, lse)
        base = tl.where(m_new == float("-inf"), 0.0, m_new)
        shrink, weight = tl.exp2(m - base), tl.exp2(lse - base)
        total = total * shrink + weight
        acc = acc * shrink[:, None] + part * weight[:, None]
        m = m_new
    sink = tl.zeros([BLOCK_R], tl.float32)
    if HAS_SINKS:
        sink = tl.load(sinks + row % heads, mask=real, other=0.0)
    result, lse = _finish(m, total, acc, sink, HAS_SINKS)
    tl.store(out + row[:, None] * VALUE_DIM + value_dim[None, :], result.to(out.dtype.element_ty), mask=written)
    tl.store(lse_out + row, lse / LOG2_E, mask=real)


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
    reason = why_not(query.dtype, max(query.shape[3], value_pages.shape[3])) or unfit(query, key_pages, value_pages)
    if reason is not None:
        raise ValueError(f"the Triton kernel cannot serve this call: {reason}; kernel='torch' can")
    batch, nodes, heads, dim = query.shape
    _, page, kv_heads, value_dim = value_pages.shape
    groups = heads // kv_heads
    tiles = -(-groups * nodes // tile_sizes(groups * nodes, max(dim, value_dim), query.element_size())[0])
    if num_splits is None:
        processors = _processors(query.device)
        num_splits = choose_splits(batch * kv_heads * tiles, _columns(rows, page, rule.window), processors)
    out = torch.empty(batch, nodes, heads, value_dim, dtype=query.dtype, device=query.device)
    lse = torch.empty(batch, nodes, heads, dtype=torch.float32, device=query.device)
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
        groups=groups, nodes=nodes, dim=dim, value_dim=value_dim, page=page, element_size=query.element_size(),
        splits=num_splits, has_cap=cap > 0, has_window=rule.window is not None, has_sinks=rule.sinks is not None,
        widen=interpreted() and query.dtype == torch.bfloat16,
    )  # fmt: skip
    _attend[tiles * num_splits, kv_heads, batch](
        query, key_pages, value_pages, rows.page_indptr, rows.page_indices, rows.lengths, bitmap, depths, sinks,
        parts, part_lse, *query.stride()[:3], *key_pages.stride()[:3], *value_pages.stride()[:3],
        bitmap.stride(0) if len(bitmap) > 1 else 0, bitmap.stride(1), depths.stride(0) if len(depths) > 1 else 0,
        nodes, tiles, rule.scale / cap if cap else rule.scale, cap, rule.window or 0, **options,
    )  # fmt: skip
    if num_splits > 1:
        merged = batch * nodes * heads
        merge_options = merge_launch_options(value_dim, num_splits, rule.sinks is not None)
        _merge[(-(-merged // MERGED_ROWS),)](parts, part_lse, sinks, out, lse, merged, heads, **merge_options)
    return out, lse


def interpreted() -> bool:
    """Whether kernels run under Triton's interpreter, on a CPU."""
    return not isinstance(_attend, triton.JITFunction)


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
