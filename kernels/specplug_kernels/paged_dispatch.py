"""Tree attention over a paged KV cache: the public function, and the choice of a backend."""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from specplug_kernels.paged_tiles import tile_sizes, unfit, why_not
from specplug_kernels.paged_tree_attention_torch import paged_tree_attention_torch
from specplug_kernels.paging import PagedRows, ScoreRule, check_paged

PAGED_KERNELS = ("auto", "torch", "triton")
"""What ``kernel=`` accepts."""

_INSTALL = "pip install 'specplug[triton]' brings it"


def paged_tree_attention(
    query: Tensor, key_pages: Tensor, value_pages: Tensor, rows: PagedRows, rule: ScoreRule, *, kernel: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Attention of every node of each row's tree over the row's committed tokens, the node's ancestors and itself.

    Args:
        query: ``[B, n, Hq, D]``; fp64, fp32, bf16 or fp16.
        key_pages: ``[pages, page, Hkv, D]``, views allowed; ``Hq`` is a multiple of ``Hkv``. The nodes' own keys are
            in their slots already.
        value_pages: ``[pages, page, Hkv, Dv]``, likewise.
        rows: where the rows stand and which nodes see which, from :func:`~specplug_kernels.paging.paged_rows`.
        rule: scale, cap, window and sinks of this layer.
        kernel: one of :data:`PAGED_KERNELS`; ``"auto"`` chooses, see :func:`explain_paged`.

    Returns:
        The output ``[B, n, Hq, Dv]``, contiguous, in the query's dtype; and the natural logarithm of the softmax's
        denominator, the sink included, ``[B, n, Hq]`` float32 (float64 for float64). A node that sees nothing gets zeros.
        Slots that no node of the row sees may hold anything, NaN too. No argument is modified.

    Raises:
        ValueError: tensors that do not fit; an unknown kernel; one that cannot be used here, with what to do about it.
    """
    check_paged(query, key_pages, value_pages, rows, rule)
    head_dim = max(query.shape[3], value_pages.shape[3])
    groups = query.shape[2] // key_pages.shape[2]
    misfit = unfit(query, key_pages, value_pages)
    name, _ = _choose(kernel, query.device.type, query.dtype, head_dim, query.shape[1], groups, misfit)
    if name == "torch":
        return paged_tree_attention_torch(query, key_pages, value_pages, rows, rule)
    from specplug_kernels.paged_tree_attention_triton import paged_tree_attention_triton  # noqa: PLC0415  (optional)

    return paged_tree_attention_triton(query, key_pages, value_pages, rows, rule)


def explain_paged(
    num_nodes: int,
    query_heads: int,
    kv_heads: int,
    head_dim: int,
    *,
    dtype: torch.dtype = torch.bfloat16,
    device: str = "cuda",
    kernel: str = "auto",
) -> str:
    """Which backend serves trees of ``num_nodes`` nodes on a kind of device, and why: ``"triton: ..."``.

    Raises:
        ValueError: a ``kernel`` that is unknown or cannot be used there.
    """
    device_type = torch.device(device).type
    return ": ".join(_choose(kernel, device_type, dtype, head_dim, num_nodes, query_heads // kv_heads))


def _choose(
    kernel: str,
    device_type: str,
    dtype: torch.dtype,
    head_dim: int,
    num_nodes: int,
    groups: int,
    misfit: str | None = None,
) -> tuple[str, str]:
    """A backend's name and the reason. ``misfit``: what keeps the Triton kernel from serving the tensors at hand."""
    if kernel not in PAGED_KERNELS:
        raise ValueError(f"unknown kernel {kernel!r}; known: {', '.join(PAGED_KERNELS)}")
    if kernel == "torch":
        return "torch", "asked for by name"
    obstacle = _no_triton(device_type, dtype, head_dim, by_name=kernel == "triton") or misfit
    if kernel == "triton":
        if obstacle is not None:
            raise ValueError(f"kernel='triton' cannot be used: {obstacle}; kernel='torch' or 'auto' can")
        return "triton", "asked for by name"
    if obstacle is not None:
        return "torch", obstacle
    rows = groups * num_nodes
    tile = tile_sizes(rows, head_dim, dtype.itemsize)[0]
    return "triton", f"{rows} packed rows (nodes times query heads a KV head), the cache read {-(-rows // tile)} times"


def _no_triton(device_type: str, dtype: torch.dtype, head_dim: int, *, by_name: bool) -> str | None:
    """Why the Triton kernel cannot serve, as a phrase; None if it can. The interpreter serves a CPU only by name."""
    if device_type not in ("cuda", "cpu"):
        return f"the Triton kernel was written for CUDA devices, not {device_type}"
    if device_type == "cpu" and not by_name:
        return "Triton compiles for GPUs, and the query is on a CPU"
    if importlib.util.find_spec("triton") is None:
        return f"the triton package is not installed ({_INSTALL})"
    from specplug_kernels.paged_tree_attention_triton import interpreted  # noqa: PLC0415  (optional)

    if device_type == "cpu" and not interpreted():
        return "Triton compiles for GPUs, and the query is on a CPU (TRITON_INTERPRET=1, set before triton is imported, interprets)"
    return why_not(dtype, head_dim)
