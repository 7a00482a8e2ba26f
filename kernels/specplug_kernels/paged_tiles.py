"""How the Triton kernel of paged tree attention is cut into tiles and splits, and what it takes. Imports no triton."""

from __future__ import annotations

import torch
from torch import Tensor

MOST_SPLITS = 64
SPLIT_COLUMNS = 256
"""A split of fewer columns than this costs more to merge than it saves."""
MERGED_ROWS = 4
"""Rows (a node and a head) that one program merges."""
MAX_HEAD_DIM = 256


def why_not(dtype: torch.dtype, head_dim: int) -> str | None:
    """What keeps this kernel from serving a dtype and head dimension, as a phrase; ``None`` if nothing does."""
    if dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return f"it takes float16, bfloat16 and float32, not {dtype}"
    if head_dim > MAX_HEAD_DIM:
        return f"it takes head dimensions up to {MAX_HEAD_DIM}, not {head_dim}"
    return None


def unfit(query: Tensor, key_pages: Tensor, value_pages: Tensor) -> str | None:
    """What keeps the kernel from serving these tensors, as a phrase; ``None`` if nothing does."""
    if not query.dtype == key_pages.dtype == value_pages.dtype:
        return f"it takes query, keys and values of one dtype, not {query.dtype}, {key_pages.dtype} and {value_pages.dtype}"
    if any(t.shape[3] > 1 and t.stride(3) != 1 for t in (query, key_pages, value_pages)):
        return "it takes query, keys and values whose last dimension is contiguous"
    return None


def launch_options(
    *,
    groups: int,
    queries: int,
    dim: int,
    value_dim: int,
    page: int,
    element_size: int,
    splits: int = 1,
    has_cap: bool = False,
    has_window: bool = False,
    has_sinks: bool = False,
    widen: bool = False,
) -> dict[str, int | bool]:
    """What the attention kernel is compiled with for these shapes. Products may be fused into sums: nothing here is bitwise."""
    block_m, block_n, warps = tile_sizes(groups * queries, max(dim, value_dim), element_size)
    return {
        "GROUPS": groups,
        "SPLITS": splits,
        "HAS_CAP": has_cap,
        "HAS_WINDOW": has_window,
        "HAS_SINKS": has_sinks,
        "PAGE": page,
        "HEAD_DIM": dim,
        "VALUE_DIM": value_dim,
        "BLOCK_M": block_m,
        "BLOCK_N": block_n,
        "BLOCK_D": max(16, next_power_of_2(dim)),
        "BLOCK_V": max(16, next_power_of_2(value_dim)),
        "WIDEN": widen,
        "num_warps": warps,
        "num_stages": 2,
        "enable_fp_fusion": True,
    }


def merge_launch_options(value_dim: int, splits: int, has_sinks: bool) -> dict[str, int | bool]:
    """What the merge kernel is compiled with."""
    return {
        "SPLITS": splits,
        "HAS_SINKS": has_sinks,
        "VALUE_DIM": value_dim,
        "BLOCK_R": MERGED_ROWS,
        "BLOCK_V": max(16, next_power_of_2(value_dim)),
        "num_warps": 4,
        "enable_fp_fusion": True,
    }


def tile_sizes(packed_rows: int, head_dim: int, element_size: int) -> tuple[int, int, int]:
    """Rows and columns of a tile, and warps: the largest that ptxas for sm_90 keeps in registers (``compile_check``).

    Rows: a power of two from 16, the least that ``tl.dot`` takes. Float32 runs without tensor cores and gets fewer.
    """
    dim = max(64, next_power_of_2(head_dim))
    most = 32 if element_size > 2 else 128 if dim <= 128 else 64
    block_m = min(most, max(16, next_power_of_2(packed_rows)))
    roomy = dim == 64 or (dim == 128 and block_m <= 32 and element_size <= 2)
    block_n = (64 if roomy else 32) if element_size <= 2 else (32 if roomy else 16)
    return block_m, block_n, 8 if block_m * dim * element_size >= 64 * 128 * 2 else 4


def choose_splits(programs: int, columns: int, processors: int) -> int:
    """How many splits give each processor two programs, as long as a split has enough columns to be worth merging."""
    wanted = -(-2 * processors // max(1, programs))
    return max(1, min(wanted, columns // SPLIT_COLUMNS, MOST_SPLITS))


def next_power_of_2(number: int) -> int:
    """The least power of two that is not below ``number`` >= 1."""
    return 1 << (number - 1).bit_length()
