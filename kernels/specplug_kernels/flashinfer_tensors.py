"""Which tensors FlashInfer's kernels can read, and views that they can. Imports no FlashInfer."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

LOAD_BYTES = 16
"""Kernels load vectors of this size: whatever a kernel steps over must be a multiple of it."""


def unfit_pools(key_pages: Tensor, value_pages: Tensor, head_dim: int) -> str | None:
    """What keeps the kernels from reading two pools ``[pages, page, Hkv, D]``, as a phrase; ``None`` if nothing does."""
    return next(_misfits(key_pages, value_pages, head_dim), None)


def slots_a_page(pages: Tensor) -> int:
    """How many slots lie between the beginnings of two pages: the page size, or more in a pool that holds other things."""
    whole, size = pages.shape[:2]
    return pages.stride(0) // pages.stride(1) if whole > 1 and size > 1 else size


def flat_slots(pages: Tensor) -> Tensor:
    """``[pages, page, Hkv, D]`` as ``[slots, 1, Hkv, D]``, pages of one slot each, without a copy."""
    whole, size, heads, dim = pages.shape
    if size == 1:
        return pages
    slots = (whole - 1) * slots_a_page(pages) + size
    _, slot, head, last = pages.stride()
    return pages.as_strided((slots, 1, heads, dim), (slot, slot, head, last))


def flat_queries(query: Tensor) -> Tensor:
    """``[B, q, Hq, D]`` as ``[B * q, Hq, D]`` that the kernels can read; copied only if it must be."""
    flat = query.flatten(0, 1)
    return flat if flat.stride(2) == 1 and _aligned(flat) else flat.contiguous()


def _misfits(key_pages: Tensor, value_pages: Tensor, head_dim: int) -> Iterator[str]:
    strides = key_pages.stride()
    if key_pages.shape != value_pages.shape or key_pages.shape[3] != head_dim:
        yield (
            f"keys and values must be alike, with heads of {head_dim}, "
            f"not {tuple(key_pages.shape)} and {tuple(value_pages.shape)}"
        )
    if strides != value_pages.stride():
        yield f"keys and values must have the same strides, not {strides} and {value_pages.stride()}"
    if strides[3] != 1:
        yield "the last dimension must be contiguous"
    if not (_aligned(key_pages) and _aligned(value_pages)):
        yield f"strides {strides} and addresses must be multiples of {LOAD_BYTES} bytes"
    if key_pages.shape[0] > 1 and key_pages.shape[1] > 1 and strides[0] % strides[1]:
        yield f"pages must begin whole slots apart: {strides[0]} elements are no multiple of a slot's {strides[1]}"
    if strides[0] >= 2**32 or key_pages.shape[0] * slots_a_page(key_pages) >= 2**31:
        yield f"{key_pages.shape[0]} pages, {strides[0]} elements apart, are more than 32-bit numbers count"


def _aligned(tensor: Tensor) -> bool:
    size, strides = tensor.element_size(), tensor.stride()[:-1]
    steps = (stride for stride, length in zip(strides, tensor.shape, strict=False) if length > 1)
    return tensor.data_ptr() % LOAD_BYTES == 0 and all(size * step % LOAD_BYTES == 0 for step in steps)
