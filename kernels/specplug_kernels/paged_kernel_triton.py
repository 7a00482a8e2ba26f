# ruff: noqa: N803  (Triton writes constants in capitals)
"""Attention of tree nodes over a paged KV cache by Triton: a long prefix read once, in splits, then the tree behind it.

The rows of a tile are the nodes that ask times the query heads that share a KV head, so keys and values are read once
for all of them. The columns of a row (its committed tokens, then its tree) are cut into splits that run side by side and
are merged by their log-sum-exp (flash-decoding: Dao, Haziza, Massa, Sizov, 2023). Blocks of committed tokens have no mask;
blocks that reach into the tree read the ancestor bitmap. Nothing is read back from the device, and the size of the grid
depends on shapes and on ``max_length`` only. Scores, softmax and sums are float32.

Under the interpreter (``TRITON_INTERPRET=1``) bfloat16 ``tl.dot`` multiplies bit patterns, so there operands are widened to
float32 first; float16 and float32 run as they are.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
DEEP = tl.constexpr(2**30)
"""The depth of the rows that fill up a tile: their windows reach no token."""


@triton.jit
def _visible(
    column, asking, position, bitmap, depths, length, num_queries, num_nodes, window, low, bitmap_query,
    IN_TREE: tl.constexpr, HAS_WINDOW: tl.constexpr,
):  # fmt: skip
    """Which columns each row of the tile sees ``[M, N]``, and which any of them sees ``[N]``: none before ``low``.

    Rows that fill up the tile see no more than the others: committed tokens, and none of those where there is a window.
    """
    visible = tl.full(asking.shape + column.shape, 1, tl.int1)
    wanted = tl.full(column.shape, 1, tl.int1)
    key_position = column
    if IN_TREE:
        in_tree = (column >= length) & (column < length + num_nodes)
        node = tl.where(in_tree, column - length, 0)
        words = bitmap + asking[:, None] * bitmap_query + (node // 32)[None, :]
        word = tl.load(words, mask=(asking < num_queries)[:, None] & in_tree[None, :], other=0)
        seen = ((word >> (node % 32)[None, :]) & 1) != 0
        visible = (column < length)[None, :] | (in_tree[None, :] & seen)
        if HAS_WINDOW:
            key_position = tl.where(in_tree, length + tl.load(depths + node), column)
    if HAS_WINDOW:
        visible = visible & (key_position[None, :] > position[:, None] - window)
        wanted = column >= low  # as a reduction would say, which Triton 3.6 cannot compile in some shapes
    if IN_TREE:
        wanted = tl.max(visible.to(tl.int32), axis=0) > 0
    return visible, wanted


@triton.jit
def _in_powers_of_two(scores, cap, HAS_CAP: tl.constexpr):
    """Scores times log2(e). With a cap ``cap * tanh(s / cap)``, by exp alone, which cannot overflow; 1 / cap is in them then."""
    if HAS_CAP:
        small = tl.exp(-2.0 * tl.abs(scores))
        scores = tl.where(scores < 0, -1.0, 1.0) * cap * ((1.0 - small) / (1.0 + small))
    return scores * LOG2_E


@triton.jit
def _block(
    c, m, total, acc, q, keys, values, page_indices, bitmap, depths, length, num_queries, num_nodes, asking, position,
    window, low, score_scale, cap, key_page, key_slot, value_page, value_slot, bitmap_query,
    IN_TREE: tl.constexpr, HAS_CAP: tl.constexpr, HAS_WINDOW: tl.constexpr, PAGE: tl.constexpr, HEAD_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Columns ``[c, c + BLOCK_N)`` added to the running maximum ``m``, ``total`` and ``acc`` (scores in powers of two)."""
    column = c + tl.arange(0, BLOCK_N)
    dim = tl.arange(0, BLOCK_D)
    value_dim = tl.arange(0, BLOCK_V)
    visible, wanted = _visible(
        column, asking, position, bitmap, depths, length, num_queries, num_nodes, window, low, bitmap_query,
        IN_TREE, HAS_WINDOW,
    )  # fmt: skip
    # What no row of this tile sees is not read: it may be anything, NaN too, which no weight of zero would silence.
    page = tl.load(page_indices + column // PAGE, mask=wanted, other=0).to(tl.int64)
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
    scores = _in_powers_of_two(tl.dot(q, key, input_precision="ieee") * score_scale, cap, HAS_CAP)
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
def _share(low, end, split, SPLITS: tl.constexpr, BLOCK_N: tl.constexpr):
    """The columns of one split: from ``low`` on in whole blocks, an equal share each; the last may get fewer, or none."""
    low = low // BLOCK_N * BLOCK_N
    share = tl.cdiv(tl.cdiv(end - low, BLOCK_N), SPLITS) * BLOCK_N
    start = low + split * share
    return start, tl.minimum(start + share, end)


@triton.jit
def attend(
    query, keys, values, page_indptr, page_indices, lengths, bitmap, depths, sinks, out, lse_out,
    query_row, query_node, query_head, key_page, key_slot, key_head, value_page, value_slot, value_head,
    bitmap_row, bitmap_query, depth_row, num_queries, num_nodes, tiles, score_scale, cap, window,
    GROUPS: tl.constexpr, SPLITS: tl.constexpr, HAS_CAP: tl.constexpr, HAS_WINDOW: tl.constexpr, HAS_SINKS: tl.constexpr,
    PAGE: tl.constexpr, HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """One tile of (query, head) rows over one split of a row's columns. Grid: tiles * splits, KV heads, batch.

    ``out`` and ``lse_out`` are the call's own results if there is one split, else ``[splits, B, q, Hq(, Dv)]`` float32.
    """
    tile, split = tl.program_id(0) % tiles, tl.program_id(0) // tiles
    kv_head, batch = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    row = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    asking = row // GROUPS
    head = kv_head * GROUPS + row % GROUPS
    real = asking < num_queries
    dim = tl.arange(0, BLOCK_D)
    value_dim = tl.arange(0, BLOCK_V)
    keys += kv_head * key_head
    values += kv_head * value_head
    bitmap += batch * bitmap_row
    depths += batch * depth_row
    page_indices += tl.load(page_indptr + batch).to(tl.int64)
    length = tl.load(lengths + batch).to(tl.int32)
    q = tl.load(
        query + batch * query_row + (asking * query_node + head * query_head)[:, None] + dim[None, :],
        mask=real[:, None] & (dim < HEAD_DIM)[None, :],
        other=0.0,
    )
    if WIDEN:
        q = q.to(tl.float32)
    position = asking
    low = 0
    if HAS_WINDOW:  # the shallowest query's window reaches back furthest, and no tree column is left out
        depth = tl.load(depths + num_nodes - num_queries + asking, mask=real, other=DEEP)
        position = length + depth
        low = tl.maximum(tl.minimum(tl.min(position, axis=0) - window + 1, length), 0)
    start, stop = _share(low, length + num_nodes, split, SPLITS, BLOCK_N)
    prefix = length // BLOCK_N * BLOCK_N

    m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_V], tl.float32)
    for in_tree in tl.static_range(2):  # blocks of committed tokens alone, then those that reach into the tree
        first = tl.maximum(start, prefix) if in_tree else start
        last = stop if in_tree else tl.minimum(stop, prefix)
        for c in range(first, last, BLOCK_N):
            m, total, acc = _block(
                c, m, total, acc, q, keys, values, page_indices, bitmap, depths, length, num_queries, num_nodes, asking,
                position, window, low, score_scale, cap, key_page, key_slot, value_page, value_slot, bitmap_query,
                in_tree, HAS_CAP, HAS_WINDOW, PAGE, HEAD_DIM, VALUE_DIM, BLOCK_N, BLOCK_D, BLOCK_V, WIDEN,
            )  # fmt: skip

    sink = tl.zeros([BLOCK_M], tl.float32)
    if HAS_SINKS and SPLITS == 1:
        sink = tl.load(sinks + head)
    result, lse = _finish(m, total, acc, sink, HAS_SINKS and SPLITS == 1)
    if SPLITS == 1:
        lse = lse / LOG2_E
    heads = tl.num_programs(1) * GROUPS
    place = ((split * tl.num_programs(2) + batch) * num_queries + asking) * heads + head
    written = real[:, None] & (value_dim < VALUE_DIM)[None, :]
    tl.store(out + place[:, None] * VALUE_DIM + value_dim[None, :], result.to(out.dtype.element_ty), mask=written)
    tl.store(lse_out + place, lse, mask=real)


@triton.jit
def merge(
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
