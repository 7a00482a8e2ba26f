"""Tree attention: the public function, and the choice of a backend by shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from specplug_kernels.reference import tree_attention_reference
from specplug_kernels.tree_attention_sdpa import sdpa, split
from specplug_kernels.tree_attention_torch import is_joinable, packed

Backend = Callable[[Tensor, Tensor, Tensor, int, "Tensor | None", float], Tensor]

PACKED_ROWS = 64
PACKED_HEAD_DIM = 64
PACKED_COLUMNS = 8192
"""Two matmuls beat the fused kernel from so many columns (of all rows of the batch) on and up to so many packed rows: by 10 to
70 % at 4 rows of 8192 columns. Below, one call costs less than three parallel regions (34 against 47 us at 300 columns)."""


def tree_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    prefix: int,
    bias: Tensor | None,
    scale: float,
    kernel: str = "auto",
) -> Tensor:
    """Attention of a few queries (the nodes of a token tree) over a long KV cache.

    Args:
        query: ``[B, Hq, n, D]``, any strides; fp64, fp32, bf16 or fp16.
        key: ``[B, Hkv, T, D]``, usually a view into a larger buffer, last dimension contiguous; ``Hq`` is a multiple of
            ``Hkv``. Never copied as a whole, never repeated.
        value: ``[B, Hkv, T, Dv]``, likewise.
        prefix: columns ``[0, prefix)`` are visible to every query of every row.
        bias: additive, ``[B or 1, 1, n, T - prefix]`` in the query's dtype, for the columns ``[prefix, T)``: ``0`` visible,
            ``-inf`` invisible. ``None``: everything is visible. What stands in invisible columns has no influence as
            long as it is finite and its dot products are.
        scale: factor on the dot products.
        kernel: one of :func:`available_kernels`; ``"auto"`` chooses by shape, see :func:`explain`.

    Returns:
        ``[B, n, Hq, Dv]``, contiguous, in the query's dtype. A query that sees no column gets zeros. The softmax is in
        fp32 (fp64 for fp64). No argument is modified.

    Raises:
        ValueError: an unknown kernel; heads, prefix or bias that do not fit.
    """
    columns = key.shape[2]
    if query.shape[1] % key.shape[1]:
        raise ValueError(f"{query.shape[1]} query heads are not a multiple of {key.shape[1]} KV heads")
    if bias is None:
        if prefix != columns:
            raise ValueError(f"without a bias the prefix must be all {columns} columns, not {prefix}")
    elif bias.shape[3] != columns - prefix or bias.shape[2] != query.shape[2]:
        raise ValueError(
            f"a bias of shape {tuple(bias.shape)} does not fit {query.shape[2]} queries, {columns} columns and a prefix "
            f"of {prefix}: [B or 1, 1, {query.shape[2]}, {columns - prefix}] is expected"
        )
    elif prefix == columns:
        bias = None
    if kernel == "auto":
        return _choose(query, key, value)[0](query, key, value, prefix, bias, scale)
    try:
        backend = _BACKENDS[kernel]
    except KeyError:
        raise ValueError(f"unknown kernel {kernel!r}; known: {', '.join(available_kernels())}") from None
    return backend(query, key, value, prefix, bias, scale)


def available_kernels() -> tuple[str, ...]:
    """What ``kernel=`` accepts here, ``"auto"`` first."""
    return ("auto", *_BACKENDS)


def explain(query_shape: Sequence[int], key_shape: Sequence[int], *, dtype: torch.dtype = torch.float32) -> str:
    """Which backend ``"auto"`` picks on a CPU for a query ``[B, Hq, n, D]`` and a key ``[B, Hkv, T, D]``, and why."""
    query = torch.empty((1,), dtype=dtype).expand(tuple(query_shape))
    key = torch.empty((1,), dtype=dtype).expand(tuple(key_shape))
    backend, reason = _choose(query, key, key)
    return f"{backend.__name__}: {reason}"


def _choose(query: Tensor, key: Tensor, value: Tensor) -> tuple[Backend, str]:
    """The rules of ``"auto"``; thresholds measured with ``python -m specplug_kernels.bench --all``."""
    if query.device.type != "cpu" or query.dtype not in _FULL_PRECISION:
        return sdpa, "only the fused kernel keeps half-precision scores in fp32, and it is the one for other devices"
    groups, columns = query.shape[1] // key.shape[1], key.shape[0] * key.shape[2]
    rows = groups * query.shape[2]
    if groups == 1:
        return sdpa, "one query head a KV head: nothing to pack"
    if columns < PACKED_COLUMNS:
        return sdpa, f"{columns} columns in all, fewer than {PACKED_COLUMNS}: one call costs least"
    if rows > PACKED_ROWS or query.shape[3] > PACKED_HEAD_DIM:
        return (
            sdpa,
            f"{rows} packed rows of {query.shape[3]}, more than {PACKED_ROWS} or {PACKED_HEAD_DIM}: no faster with two matmuls",
        )
    if not (is_joinable(key) and is_joinable(value)):
        return sdpa, "the strides of batch and heads do not join"
    return packed, f"{rows} packed rows over {columns} columns: two matmuls over strided views"


def _reference(query: Tensor, key: Tensor, value: Tensor, prefix: int, bias: Tensor | None, scale: float) -> Tensor:
    return tree_attention_reference(query, key, value, prefix=prefix, bias=bias, scale=scale)


_FULL_PRECISION = (torch.float32, torch.float64)
_BACKENDS: dict[str, Backend] = {"torch": _reference, "packed": packed, "split": split, "sdpa": sdpa}
