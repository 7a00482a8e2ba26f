"""Attention of tree nodes over a paged KV cache by FlashInfer's FA2 kernels, by three paths. Imports FlashInfer when it plans."""

from __future__ import annotations

from dataclasses import replace

from specplug_kernels.flashinfer_attention import FlashInferAttention
from specplug_kernels.flashinfer_bitmap import assert_order
from specplug_kernels.flashinfer_failure import FlashInferError
from specplug_kernels.flashinfer_graph import FlashInferGraph
from specplug_kernels.flashinfer_paths import FLASHINFER_PATHS, why_not_flashinfer
from specplug_kernels.flashinfer_wrappers import concrete
from specplug_kernels.paging import PagedRows, PagedShape

__all__ = [
    "FLASHINFER_PATHS",
    "FlashInferAttention",
    "FlashInferError",
    "FlashInferGraph",
    "plan_flashinfer",
    "why_not_flashinfer",
]


def plan_flashinfer(
    rows: PagedRows, shape: PagedShape, *, path: str, graph_buffers: FlashInferGraph | None = None
) -> FlashInferAttention:
    """Prepare one path for a forward's layers.

    A kernel is planned when the first layer with its rule comes, and serves all that follow with that scale, cap and
    window; what planning needs to know on the host follows from ``rows.lengths_host``. If that is ``None``, this call
    waits for the device to learn the lengths.

    Args:
        rows: the batch; it must not change while the plan is in use.
        shape: of the layers. All plans of a device share a workspace: they are to be used on one stream.
        path: one of :data:`FLASHINFER_PATHS`. ``"bitmap"`` wants a parent to stand before its children: on a CPU that is
            checked, on a GPU it is asserted on the device.
        graph_buffers: for kernels captured in a CUDA graph, see :class:`~specplug_kernels.flashinfer_graph.FlashInferGraph`.
            What its earlier plans were asked for is then planned here.

    Raises:
        ValueError: the path cannot serve this forward, or the batch does not fit the buffers; nodes out of order.
        FlashInferError: FlashInfer cannot build or run a kernel (raised by the layer that needs it).
    """
    shape = replace(shape, device=concrete(shape.device))
    reason = why_not_flashinfer(shape, rows.num_nodes, path, num_queries=rows.num_queries)
    lengths = rows.lengths_host
    if lengths is None:
        lengths = tuple(rows.lengths.tolist())
    if reason is None and graph_buffers is not None:
        reason = graph_buffers.why_not(rows, lengths, shape.page_size, shape.device)
    if reason is not None:
        raise ValueError(f"FlashInfer's path {path!r} cannot be used: {reason}; kernel='torch' can")
    if path == "bitmap":
        assert_order(rows)
    return FlashInferAttention(rows, lengths, shape, path, graph_buffers)
