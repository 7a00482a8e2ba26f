"""Attention of tree nodes over a paged KV cache by FlashInfer's FA2 kernels, by three paths. Imports FlashInfer when it plans."""

from __future__ import annotations

import torch

from specplug_kernels.flashinfer_attention import FlashInferAttention, Shape
from specplug_kernels.flashinfer_bitmap import assert_order
from specplug_kernels.flashinfer_graph import FlashInferGraph
from specplug_kernels.flashinfer_paths import FLASHINFER_PATHS, why_not_flashinfer
from specplug_kernels.flashinfer_wrappers import concrete
from specplug_kernels.paging import PagedRows

__all__ = ["FLASHINFER_PATHS", "FlashInferAttention", "FlashInferGraph", "plan_flashinfer", "why_not_flashinfer"]


def plan_flashinfer(
    rows: PagedRows,
    *,
    query_heads: int,
    kv_heads: int,
    head_dim: int,
    page_size: int,
    dtype: torch.dtype,
    device: torch.device,
    path: str,
    graph_buffers: FlashInferGraph | None = None,
) -> FlashInferAttention:
    """Prepare one path for a forward's layers.

    A kernel is planned when the first layer with its rule comes, and serves all that follow with that scale, cap and
    window; what planning needs to know on the host follows from ``rows.lengths_host``. If that is ``None``, this call
    waits for the device to learn the lengths.

    Args:
        rows: the batch; it must not change while the plan is in use.
        query_heads: Hq, a multiple of ``kv_heads``.
        kv_heads: Hkv.
        head_dim: D of keys and values.
        page_size: tokens a page.
        dtype: of query, keys and values.
        device: where they are. All plans of a device share a workspace: they are to be used on one stream.
        path: one of :data:`FLASHINFER_PATHS`. ``"bitmap"`` wants a parent to stand before its children: on a CPU that is
            checked, on a GPU it is asserted on the device.
        graph_buffers: for kernels captured in a CUDA graph, see :class:`~specplug_kernels.flashinfer_graph.FlashInferGraph`.
            What its earlier plans were asked for is then planned here.

    Raises:
        ValueError: the path cannot serve this forward, or the batch does not fit the buffers; nodes out of order.
        RuntimeError: FlashInfer could not build or plan a kernel (raised by the layer that needs it).
    """
    groups, device = query_heads // kv_heads, concrete(device)
    reason = why_not_flashinfer(
        dtype, head_dim, page_size, device.type, rows.num_nodes, groups, path, num_queries=rows.num_queries
    )
    lengths = rows.lengths_host
    if lengths is None:
        lengths = tuple(rows.lengths.tolist())
    if reason is None and graph_buffers is not None:
        reason = graph_buffers.why_not(rows, lengths, page_size, device)
    if reason is not None:
        raise ValueError(f"FlashInfer's path {path!r} cannot be used: {reason}; kernel='torch' can")
    if path == "bitmap":
        assert_order(rows)
    shape = Shape(query_heads, kv_heads, head_dim, page_size, dtype, device)
    return FlashInferAttention(rows, lengths, shape, path, graph_buffers)
