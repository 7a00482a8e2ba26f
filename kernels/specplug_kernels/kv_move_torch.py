"""Moves inside a preallocated KV cache: writing new columns, committing accepted ones."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def write_kv(buffer: Tensor, new: Tensor, slots: int | Tensor, lines: Tensor | None = None) -> None:
    """Write ``new`` into columns of ``buffer``, in place.

    Args:
        buffer: ``[B, H, capacity, D]``, any strides; modified.
        new: ``[B, H, n, D]``; cast to the buffer's dtype.
        slots: an int: every row writes the columns ``slots .. slots + n - 1``; or a LongTensor ``[B, n]``: the column
            of each entry. Entries must be valid columns; of duplicates in a row an unspecified one stays.
        lines: what ``lines_of`` says of these slots and a contiguous buffer of this shape: one for all layers, and a write
            takes half as long.

    Raises:
        ValueError: an int range that does not fit the capacity.
        IndexError or RuntimeError: a column outside the capacity (on a CPU).
    """
    count = new.shape[2]
    if isinstance(slots, int):
        if slots < 0 or slots + count > buffer.shape[2]:
            raise ValueError(f"columns {slots}..{slots + count - 1} do not fit a capacity of {buffer.shape[2]}")
        buffer.narrow(2, slots, count).copy_(new)
        return
    columns = new.transpose(1, 2)
    if columns.dtype != buffer.dtype:
        columns = columns.to(buffer.dtype)
    if lines is None:
        buffer.transpose(1, 2).index_put_((_rows(slots), slots), columns)
    else:
        buffer.view(-1, buffer.shape[3]).index_copy_(0, lines, columns.reshape(-1, buffer.shape[3]))


def lines_of(buffer: Tensor, slots: Tensor) -> Tensor | None:
    """Where ``slots`` ``[B, n]`` lie in a contiguous ``buffer`` ``[B, H, capacity, D]`` seen as ``[B * H * capacity, D]``: an index
    ``[B * n * H]`` for ``write_kv``. None if the buffer is not contiguous.

    Raises:
        IndexError: a column outside the capacity (on a CPU).
    """
    if not buffer.is_contiguous():
        return None
    return _lines(tuple(buffer.shape[:3]), slots, by_column=True)


def commit_kv(storages: Sequence[Tensor], source: Tensor, target: Tensor) -> None:
    """Move columns ``source[b, j]`` to ``target[b, j]`` in every storage, in place: one gather and one scatter each.

    All sources of a storage are read before anything is written, so overlapping moves are right. An entry whose source
    is its target changes nothing: that is how rows with fewer moves are padded.

    Args:
        storages: tensors ``[..., B, H, capacity, D]`` with any leading dimensions (layers), any strides; modified.
        source: LongTensor ``[B, m]``, valid columns.
        target: LongTensor ``[B, m]``, valid columns. Two entries of a row may share a target only if they share the
            source too; in particular a padding entry must not name a column that another entry writes.

    Raises:
        IndexError or RuntimeError: a column outside the capacity (on a CPU).
    """
    if source.numel() == 0:
        return
    lines: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}
    for storage in storages:
        vectors = storage.shape[:-2].numel()
        if vectors >= FLAT_FROM and storage.is_contiguous():
            shape = tuple(storage.shape[:-1])
            if shape not in lines:
                lines[shape] = _lines(shape, source), _lines(shape, target)
            flat = storage.view(-1, storage.shape[-1])
            flat.index_copy_(0, lines[shape][1], flat.index_select(0, lines[shape][0]))
        else:
            columns = storage.movedim((-4, -2), (0, 1))
            columns.index_put_((_rows(target), target), columns[_rows(source), source])


def commit_paged_kv(pools: Sequence[Tensor], source: Tensor, target: Tensor) -> None:
    """Move slot ``source[b, j]`` to ``target[b, j]`` in every pool of a paged cache, in place.

    All sources of a pool are read before anything is written, so overlapping moves are right. An entry whose source is its
    target changes nothing: that is how rows with fewer moves are padded.

    Args:
        pools: tensors ``[slots, Hkv, D]`` or ``[pages, page, Hkv, D]``, keys and values of all layers (a stacked tensor as
            ``stacked.unbind(0)``), Hkv and D contiguous; slot s of the second form is page ``s // page``, offset
            ``s % page``. Modified.
        source: ``[B, m]`` int32 or int64, valid slots.
        target: ``[B, m]``, likewise. No two entries that move share a target; a padding entry must not name a slot that
            another entry writes.

    Raises:
        ValueError: a pool whose strides do not allow to count its slots through.
        IndexError or RuntimeError: a slot outside a pool (on a CPU).
    """
    if source.numel() == 0:
        return
    check_pools(pools)
    read, written = source.flatten().long(), target.flatten().long()
    for pool in pools:
        slots = pool if pool.ndim == 3 else pool.flatten(0, 1)
        slots.index_copy_(0, written, slots.index_select(0, read))


def check_pools(pools: Sequence[Tensor]) -> None:
    """Raise ValueError unless the slots of every pool can be counted through with one stride, on one device."""
    for pool in pools:
        if pool.ndim not in (3, 4):
            raise ValueError(f"a pool must be [slots, Hkv, D] or [pages, page, Hkv, D], not {tuple(pool.shape)}")
        if pool.stride(-1) != 1 or pool.stride(-2) != pool.shape[-1]:
            raise ValueError(f"heads and dimensions of a pool must be contiguous; strides are {pool.stride()}")
        if pool.ndim == 4 and pool.stride(0) != pool.shape[1] * pool.stride(1):
            raise ValueError(f"the pages of a pool must follow one another; strides are {pool.stride()}")
        if pool.device != pools[0].device:
            raise ValueError(f"all pools must be on one device, not {pools[0].device} and {pool.device}")


FLAT_FROM = 32
"""From this many (layer, row, head) triples on, one flat index is faster than indexing ``[B, capacity]`` (measured)."""


def _rows(columns: Tensor) -> Tensor:
    """``[B, 1]``: the row of each entry of ``columns [B, m]``."""
    return torch.arange(columns.shape[0], device=columns.device).unsqueeze(1)


def _lines(shape: tuple[int, ...], columns: Tensor, by_column: bool = False) -> Tensor:
    """For ``columns [B, m]`` of a contiguous ``[..., B, H, capacity, D]``: indices into its ``[-1, D]``, in the order ``[..., B, H, m]``
    or, ``by_column``, ``[..., B, m, H]``."""
    capacity = shape[-1]
    if columns.device.type == "cpu" and not 0 <= int(columns.min()) <= int(columns.max()) < capacity:
        raise IndexError(f"columns {int(columns.min())}..{int(columns.max())} do not fit a capacity of {capacity}")
    starts = torch.arange(math.prod(shape[:-1]), device=columns.device).view(-1, shape[-3], shape[-2], 1) * capacity
    lines = starts + columns.unsqueeze(1)
    return (lines.transpose(-1, -2) if by_column else lines).reshape(-1)
