# ruff: noqa: N803  (Triton writes constants in capitals)
"""Committing accepted KV in a paged cache by Triton: all layers, keys and values, in one launch a kind of pool.

A program takes one row of the batch, one pool and a piece of its lines, reads the row's moved pieces all at once, waits for
all its threads, then writes. So overlapping moves are right, as in ``kv_move_torch``. Bytes are moved, not numbers: any dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from specplug_kernels.kv_move_torch import check_pools

PIECE = 4096
"""Integers that a program holds at a time."""

_WORDS = ((8, torch.int64), (4, torch.int32), (2, torch.int16), (1, torch.int8))


@dataclass(frozen=True, slots=True)
class PoolGroup:
    """Pools that one launch serves: their addresses, and what they have in common."""

    addresses: Tensor  # [pools] int64, of the first slot of each
    word: Tensor  # an empty tensor of the integer type that lines are moved as
    words: int  # of a line, all KV heads of one slot
    stride: int  # words from one slot to the next


@dataclass(frozen=True, slots=True)
class PoolTable:
    """Addresses of pools on their device, made once at set-up by :func:`pool_table`; keeps the pools alive."""

    pools: tuple[Tensor, ...]
    groups: tuple[PoolGroup, ...]


def pool_table(pools: Sequence[Tensor]) -> PoolTable:
    """Describe the pools of all layers, keys and values alike; a stacked tensor is given as ``stacked.unbind(0)``.

    Args:
        pools: tensors ``[slots, Hkv, D]`` or ``[pages, page, Hkv, D]`` on one device, any dtypes; Hkv and D contiguous, and
            slot s of the second form stands at page ``s // page``, offset ``s % page``, one stride from slot to slot.

    Raises:
        ValueError: a pool whose strides do not allow that, or pools on several devices.
    """
    check_pools(pools)
    shapes: dict[tuple[torch.dtype, int, int], list[int]] = {}
    for pool in pools:
        line, stride = pool[0].shape.numel() if pool.ndim == 3 else pool[0, 0].shape.numel(), pool.stride(-3)
        size = pool.element_size()
        divides = (line * size, stride * size, pool.data_ptr())
        width, dtype = next(word for word in _WORDS if all(number % word[0] == 0 for number in divides))
        shapes.setdefault((dtype, line * size // width, stride * size // width), []).append(pool.data_ptr())
    groups = tuple(
        PoolGroup(
            torch.tensor(addresses, dtype=torch.int64, device=pools[0].device),
            torch.empty(0, dtype=dtype, device=pools[0].device),
            words,
            stride,
        )
        for (dtype, words, stride), addresses in shapes.items()
    )
    return PoolTable(tuple(pools), groups)


@triton.jit
def _commit(
    addresses, word, source, target, moves, words, stride,
    BLOCK_M: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """``moves`` lines of one row from ``source`` to ``target``, BLOCK_W words of each. Grid: pieces, pools, batch."""
    batch = tl.program_id(2).to(tl.int64)
    pool = tl.load(addresses + tl.program_id(1)).to(tl.pointer_type(word.dtype.element_ty))
    move = tl.arange(0, BLOCK_M)
    column = tl.program_id(0) * BLOCK_W + tl.arange(0, BLOCK_W)
    read = tl.load(source + batch * moves + move, mask=move < moves, other=0).to(tl.int64)
    written = tl.load(target + batch * moves + move, mask=move < moves, other=0).to(tl.int64)
    moved = (read != written)[:, None] & (column < words)[None, :]
    lines = tl.load(pool + read[:, None] * stride + column[None, :], mask=moved)
    tl.debug_barrier()  # everything is read before anything is written
    tl.store(pool + written[:, None] * stride + column[None, :], lines, mask=moved)


def commit_paged_kv_triton(table: PoolTable, source: Tensor, target: Tensor) -> None:
    """Move slot ``source[b, j]`` to ``target[b, j]`` in every pool, in place; an entry whose source is its target does nothing.

    Args:
        table: from :func:`pool_table`; its pools are modified.
        source: ``[B, m]`` int32 or int64, valid slots.
        target: ``[B, m]``, likewise. No two entries that move share a target, and no row writes what another row reads.

    Nothing is read back from the device; slots are not checked.
    """
    rows, moves = source.shape
    if source.numel() == 0:
        return
    source, target = source.contiguous(), target.contiguous()
    for group in table.groups:
        options = commit_launch_options(moves, group.words)
        grid = (-(-group.words // int(options["BLOCK_W"])), len(group.addresses), rows)
        _commit[grid](group.addresses, group.word, source, target, moves, group.words, group.stride, **options)


def commit_launch_options(moves: int, words: int) -> dict[str, int]:
    """What the commit kernel is compiled with."""
    block_m = triton.next_power_of_2(moves)
    block_w = min(triton.next_power_of_2(words), max(16, PIECE // block_m))
    return {"BLOCK_M": block_m, "BLOCK_W": block_w, "num_warps": 4, "enable_fp_fusion": False}
