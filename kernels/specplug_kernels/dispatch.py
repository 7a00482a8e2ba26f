"""Tree attention: the public function, and the choice of a backend by shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from specplug_kernels import tree_attention_native
from specplug_kernels.measured_rows import attention_rows
from specplug_kernels.native.attention_library import AttentionLibrary, attention_library
from specplug_kernels.processor import Processor, processor
from specplug_kernels.processor import multiplies as _multiplies
from specplug_kernels.reference import tree_attention_reference
from specplug_kernels.tree_attention_native import native
from specplug_kernels.tree_attention_sdpa import sdpa, split
from specplug_kernels.tree_attention_torch import is_joinable, packed, widened

Backend = Callable[[Tensor, Tensor, Tensor, int, "Tensor | None", float], Tensor]

PACKED_ROWS = 64
PACKED_HEAD_DIM = 64
PACKED_COLUMNS = 8192
"""Two matmuls beat the fused kernel from so many columns (of all rows of the batch) on and up to so many packed rows: by 10 to
70 % at 4 rows of 8192 columns. Below, one call costs less than three parallel regions (34 against 47 us at 300 columns)."""
LONG_HEAD_DIM = 128
LONG_ROWS = 4
LONG_COLUMNS = 2048
"""Vectors of so many numbers: up to so many rows two matmuls take 0.65 to 0.8 of the fused kernel's time, from 6 rows on the same."""


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
        ValueError: an unknown kernel; heads, prefix or bias that do not fit; ``"native"`` where it cannot serve, and why.
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
        return _auto(query, key, value, prefix, bias, scale)
    try:
        backend = _BACKENDS[kernel]
    except KeyError:
        raise ValueError(f"unknown kernel {kernel!r}; known: {', '.join(available_kernels())}") from None
    return backend(query, key, value, prefix, bias, scale)


def available_kernels() -> tuple[str, ...]:
    """What ``kernel=`` accepts here, ``"auto"`` first."""
    return ("auto", *_BACKENDS)


def explain(
    query_shape: Sequence[int],
    key_shape: Sequence[int],
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> str:
    """Which backend ``"auto"`` picks on a device for a query ``[B, Hq, n, D]`` and a key ``[B, Hkv, T, D]``, and why.

    For tensors as they usually are: values like the keys, and no gradients. Like the first call itself, it may compile.
    """
    device_type, dim = torch.device(device).type, query_shape[3]
    obstacle = _better_torch(query_shape, key_shape, dim, dtype, device_type)
    if obstacle is None:
        rows = tree_attention_native.packed_rows(query_shape, key_shape)
        return f"{native.__name__}: {rows} packed rows of {dim}: one compiled pass over the cache"
    backend, reason = _choose_torch(query_shape, key_shape, dtype, device_type)
    return f"{backend.__name__}: {reason}" + ("" if device_type != "cpu" else f" (not native: {obstacle})")


def _auto(query: Tensor, key: Tensor, value: Tensor, prefix: int, bias: Tensor | None, scale: float) -> Tensor:
    """What is asked in every layer of every forward: what `_better_torch` says, in one function (see ``try_linear``) and no words."""
    loaded, dtype = attention_library.found, query.dtype
    if loaded is None and _could_serve(query, value):
        loaded = attention_library()  # built while a prompt is read, not in the first round
    if (
        isinstance(loaded, AttentionLibrary)
        and query.is_cpu
        and key.dtype is dtype
        and value.dtype is dtype
        and (bias is None or bias.dtype is dtype)
        and key.stride(3) == 1
        and value.stride(3) == 1
        and not (torch.is_grad_enabled() and tree_attention_native.wants_gradients(query, key, value, bias))
    ):
        rows, dims = query.shape[1] // key.shape[1] * query.shape[2], (query.shape[3], value.shape[3])
        if rows <= _most_rows(loaded, dtype, dims, processor(), torch.get_num_threads()):
            return loaded(query, key, value, prefix, bias, scale)
    joinable = is_joinable(key) and is_joinable(value)
    backend, _ = _choose_torch(query.shape, key.shape, dtype, query.device.type, joinable)
    return backend(query, key, value, prefix, bias, scale)


def _could_serve(query: Tensor, value: Tensor) -> bool:
    """Whether it is worth building the compiled kernel for such heads."""
    dims = query.shape[3], value.shape[3]
    return tree_attention_native.why_not_sizes(query.dtype, query.device.type, *dims) is None


@lru_cache(maxsize=64)
def _most_rows(
    loaded: AttentionLibrary, dtype: torch.dtype, dims: tuple[int, int], kind: Processor, threads: int
) -> int:
    """Packed rows up to which the compiled kernel is the better one, on a processor of `kind` and so many threads; 0 where it does not
    serve."""
    unserved = tree_attention_native.why_not_sizes(dtype, "cpu", *dims) is not None or dtype not in loaded.dtypes
    if unserved or tree_attention_native.why_slow(threads) is not None:
        return 0
    return attention_rows(kind, dtype, dims[0], loaded.in_blocks(dtype, *dims))


def _better_torch(
    query_shape: Sequence[int], key_shape: Sequence[int], value_dim: int, dtype: torch.dtype, device_type: str
) -> str | None:
    """Why torch is better than the compiled kernel; ``None`` if it is not."""
    compiled = tree_attention_native
    obstacle = (
        compiled.why_not_sizes(dtype, device_type, query_shape[3], value_dim)
        or compiled.why_no_library(dtype)
        or compiled.why_slow(torch.get_num_threads())
    )
    if obstacle is not None:
        return obstacle
    rows = compiled.packed_rows(query_shape, key_shape)
    loaded = attention_library()
    assert isinstance(loaded, AttentionLibrary)  # or it would have been said above
    dim = query_shape[3]
    most = attention_rows(processor(), dtype, dim, loaded.in_blocks(dtype, dim, value_dim))
    return f"{rows} packed rows, more than {most}" if rows > most else None


def _choose_torch(
    query_shape: Sequence[int], key_shape: Sequence[int], dtype: torch.dtype, device_type: str, joinable: bool = True
) -> tuple[Backend, str]:
    """The rules among torch's backends; thresholds measured with ``python -m specplug_kernels.bench``."""
    if device_type != "cpu":
        return sdpa, "the fused kernel is the one for other devices"
    groups, columns, dim = query_shape[1] // key_shape[1], key_shape[0] * key_shape[2], query_shape[3]
    rows = groups * query_shape[2]
    if dtype not in _FULL_PRECISION:
        return _choose_half(rows, dtype)
    obstacle = _better_fused(groups, rows, columns, dim)
    if obstacle is None and not joinable:
        obstacle = "the strides of batch and heads do not join"
    if obstacle is not None:
        return sdpa, obstacle
    return packed, f"{rows} packed rows of {dim} over {columns} columns: two matmuls over strided views"


def _better_fused(groups: int, rows: int, columns: int, dim: int) -> str | None:
    """Why one fused call is better than two matmuls in full precision on a CPU; ``None`` if it is not."""
    if dim >= LONG_HEAD_DIM and rows <= LONG_ROWS and columns >= LONG_COLUMNS:
        return None
    if groups == 1:
        return "one query head a KV head: nothing to pack"
    if columns < PACKED_COLUMNS:
        return f"{columns} columns in all, fewer than {PACKED_COLUMNS}: one call costs least"
    if rows > PACKED_ROWS or dim > PACKED_HEAD_DIM:
        return f"{rows} packed rows of {dim}, more than {PACKED_ROWS} or {PACKED_HEAD_DIM}: no faster with two matmuls"
    return None


def _choose_half(rows: int, dtype: torch.dtype) -> tuple[Backend, str]:
    """For bf16 and fp16 on a CPU. Without its products the fused kernel takes twice the time of ``widened`` for one row of bf16
    (two rows take it half as long as one), and two to ten times for fp16.
    """
    if _multiplies(dtype):
        return sdpa, f"the processor multiplies in {dtype}, and the fused kernel keeps the scores in fp32"
    if dtype == torch.float16 or rows == 1:
        return widened, f"the processor does not multiply in {dtype}: {rows} packed rows in fp32, a block at a time"
    return sdpa, f"{rows} packed rows: the fused kernel widens {dtype} as fast"


def _reference(query: Tensor, key: Tensor, value: Tensor, prefix: int, bias: Tensor | None, scale: float) -> Tensor:
    return tree_attention_reference(query, key, value, prefix=prefix, bias=bias, scale=scale)


_FULL_PRECISION = (torch.float32, torch.float64)
_BACKENDS: dict[str, Backend] = {
    "torch": _reference,
    "packed": packed,
    "widened": widened,
    "split": split,
    "sdpa": sdpa,
    "native": native,
}
