"""Moves inside a preallocated KV cache: writing new columns, committing accepted ones."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def write_kv(buffer: Tensor, new: Tensor, slots: int | Tensor) -> None:
    """Write ``new`` into columns of ``buffer``, in place.

    Args:
        buffer: ``[B, H, capacity, D]``, any strides; modified.
        new: ``[B, H, n, D]``; cast to the buffer's dtype.
        slots: an int: every row writes the columns ``slots .. slots + n - 1``; or a LongTensor ``[B, n]``: the column
            of each entry. Entries must be valid columns; of duplicates in a row an unspecified one stays.

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
    buffer.transpose(1, 2).index_put_((_rows(slots), slots), new.transpose(1, 2).to(buffer.dtype))


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


FLAT_FROM = 32
"""From this many (layer, row, head) triples on, one flat index is faster than indexing ``[B, capacity]`` (measured)."""


def _rows(columns: Tensor) -> Tensor:
    """``[B, 1]``: the row of each entry of ``columns [B, m]``."""
    return torch.arange(columns.shape[0], device=columns.device).unsqueeze(1)


def _lines(shape: tuple[int, ...], columns: Tensor) -> Tensor:
    """For ``columns [B, m]`` of a contiguous ``[..., B, H, capacity, D]``: indices into its ``[-1, D]``."""
    capacity = shape[-1]
    if columns.device.type == "cpu" and not 0 <= int(columns.min()) <= int(columns.max()) < capacity:
        raise IndexError(f"columns {int(columns.min())}..{int(columns.max())} do not fit a capacity of {capacity}")
    starts = torch.arange(math.prod(shape[:-1]), device=columns.device).view(-1, shape[-3], shape[-2], 1) * capacity
    return (starts + columns.unsqueeze(1)).view(-1)
