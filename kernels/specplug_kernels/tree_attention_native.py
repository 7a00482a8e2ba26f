"""Tree attention compiled from C (``native/tree_attention.c``): every key and value is read once for all its queries.

The query heads of a KV head and the nodes are the rows of one pass over the columns, prefix and tree alike, in fp32; threads
share the columns of all KV heads evenly and are merged by log-sum-exp.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from specplug_kernels.native.attention_library import attention_library
from specplug_kernels.native.library import DTYPES
from specplug_kernels.tree_attention_sdpa import sdpa

LARGEST_DIM = 256
LANES = 8
"""Heads are whole vectors of so many floats."""


def native(query: Tensor, key: Tensor, value: Tensor, prefix: int, bias: Tensor | None, scale: float) -> Tensor:
    """Arguments and result as in ``dispatch.tree_attention``. Where gradients are wanted, this is ``sdpa``.

    Raises:
        ValueError: a device, dtype, head dimension or stride that is not served, or no library, with the reason.
    """
    obstacle = (
        why_not_sizes(query.dtype, query.device.type, query.shape[3], value.shape[3])
        or why_not_tensors(query, key, value, bias)
        or why_no_library(query.dtype)
    )
    if obstacle is not None:
        raise ValueError(f"kernel 'native' does not serve: {obstacle}")
    if wants_gradients(query, key, value, bias):
        return sdpa(query, key, value, prefix, bias, scale)
    return run(query, key, value, prefix, bias, scale)


def run(query: Tensor, key: Tensor, value: Tensor, prefix: int, bias: Tensor | None, scale: float) -> Tensor:
    """``native`` for what is known to be served."""
    loaded = attention_library()
    assert not isinstance(loaded, str), loaded
    return loaded(query, key, value, prefix, bias, scale)


def why_not_sizes(dtype: torch.dtype, device_type: str, *dims: int) -> str | None:
    """Why calls like this one are not served, whatever their tensors; ``None`` if they are. Nothing is built for the answer."""
    if device_type != "cpu":
        return f"it computes on a CPU, not on {device_type}"
    if dtype not in DTYPES:
        return f"it computes in fp32 from fp32, bf16 and fp16, not from {dtype}"
    wrong = [dim for dim in dims if dim % LANES or not 0 < dim <= LARGEST_DIM]
    return f"heads of {wrong[0]}: multiples of {LANES} up to {LARGEST_DIM} are served" if wrong else None


def why_not_tensors(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> str | None:
    """Why these tensors are not served; ``None`` if they are."""
    if key.stride(3) != 1 or value.stride(3) != 1:
        return "the elements of a key or value do not lie side by side"
    if not query.dtype == key.dtype == value.dtype or (bias is not None and bias.dtype != query.dtype):
        return "query, key, value and bias have several dtypes"
    return None


def why_no_library(dtype: torch.dtype) -> str | None:
    """Why there is no library for ``dtype`` here; ``None`` if there is. Builds it when first asked."""
    return attention_library.why_none(dtype)


def why_slow(threads: int) -> str | None:
    """Why torch may well be faster here; ``None`` if the library is as it was measured."""
    loaded = attention_library()
    if isinstance(loaded, str) or not loaded.vectors:
        return "it is built without AVX2, with which it was measured"
    if threads > 1 and not loaded.threads:
        return f"it is built without torch's OpenMP and would use one of {threads} threads"
    return None


def wants_gradients(*tensors: Tensor | None) -> bool:
    """Whether autograd would record an operation on ``tensors``."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def packed_rows(query_shape: Sequence[int], key_shape: Sequence[int]) -> int:
    """Queries that share a KV head."""
    return query_shape[1] // key_shape[1] * query_shape[2]
