# ruff: noqa: N803  (Triton writes constants in capitals)
"""Greedy verification of token trees by Triton: the longest path of the target's own choices, one program a row."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from specplug_kernels.tree_verdict import TreeVerdict, check_dtypes, row_stride


@triton.jit
def _verify_greedy(
    tokens, parents, depths, bitmap, valid, targets, path, num_accepted, bonus,
    num_nodes, parents_row, depths_row, bitmap_row, words, path_width,
    HAS_VALID: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One row: the deepest node without a broken ancestor, the first such node if there are several."""
    row = tl.program_id(0).to(tl.int64)
    tokens += row * num_nodes
    targets += row * num_nodes
    valid += row * num_nodes
    parents += row * parents_row
    bitmap += row * bitmap_row
    path += row * path_width
    node = tl.arange(0, BLOCK)
    broken = tl.zeros([BLOCK], tl.int32)
    for word in range(words):
        other = word * 32 + tl.arange(0, 32)
        real = other < num_nodes
        parent = tl.load(parents + other, mask=real, other=0)
        match = tl.load(tokens + other, mask=real, other=0) == tl.load(
            targets + tl.maximum(parent, 0), mask=real, other=0
        )
        if HAS_VALID:
            match = match & (tl.load(valid + other, mask=real, other=0) != 0)
        missed = (~match) & real & (other > 0)
        bits = tl.load(bitmap + node * words + word, mask=node < num_nodes, other=0)
        sees = (bits[:, None] >> tl.arange(0, 32)[None, :]) & 1
        broken = tl.maximum(broken, tl.max(sees * missed[None, :].to(tl.int32), axis=1))
    depth = tl.load(depths + row * depths_row + node, mask=node < num_nodes, other=-1).to(tl.int32)
    depth = tl.where(broken > 0, -1, depth)
    accepted = tl.max(depth, axis=0)
    best = tl.min(tl.where(depth == accepted, node, BLOCK), axis=0)
    bits = tl.load(bitmap + best * words + node // 32, mask=node < num_nodes, other=0)
    on_path = ((bits >> (node % 32)) & 1) != 0
    tl.store(path + depth, node.to(tl.int64), mask=on_path & (depth >= 0))
    tl.store(path + node, best.to(tl.int64) + tl.zeros([BLOCK], tl.int64), mask=(node > accepted) & (node < path_width))
    tl.store(num_accepted + row, accepted.to(tl.int64))
    tl.store(bonus + row, tl.load(targets + best))


def verify_greedy_triton(
    tokens: Tensor,
    parents: Tensor,
    depths: Tensor,
    bitmap: Tensor,
    targets: Tensor,
    *,
    max_depth: int,
    valid: Tensor | None = None,
) -> TreeVerdict:
    """Longest path whose every token is the target's argmax at its parent.

    Args:
        tokens: ``[B, N]`` int64, column 0 the root.
        parents: ``[B or 1, N]`` int64, root -1.
        depths: ``[B or 1, N]``, root 0.
        bitmap: ``[B or 1, N, ceil(N / 32)]`` int32, :func:`~specplug_kernels.paging.ancestor_bitmap` of the ancestors.
        targets: ``[B, N]`` int64, the target's argmax at every node.
        max_depth: most draft tokens on a path of any row; at most N - 1.
        valid: ``[B, N]`` bool, False = padding, never accepted; ``None``: every node is real.

    Returns:
        A :class:`TreeVerdict`. Nothing is read back from the device; no argument is modified.

    Raises:
        ValueError: dtypes or shapes that do not fit.
    """
    rows, nodes = tokens.shape
    check_dtypes(tokens=tokens, parents=parents, targets=targets, bitmap=bitmap)
    path = torch.empty(rows, max_depth + 1, dtype=torch.int64, device=tokens.device)
    num_accepted, bonus = (torch.empty(rows, dtype=torch.int64, device=tokens.device) for _ in range(2))
    tokens, targets, bitmap = tokens.contiguous(), targets.contiguous(), bitmap.contiguous()
    parents, depths = parents.contiguous(), depths.contiguous()
    valid = valid if valid is None else valid.contiguous().view(torch.uint8)
    if rows:
        _verify_greedy[(rows,)](
            tokens, parents, depths, bitmap, tokens if valid is None else valid, targets, path, num_accepted, bonus,
            nodes, row_stride(parents), row_stride(depths), row_stride(bitmap), bitmap.shape[2], max_depth + 1,
            **greedy_launch_options(nodes, has_valid=valid is not None),
        )  # fmt: skip
    return TreeVerdict(path, num_accepted, bonus)


def greedy_launch_options(nodes: int, *, has_valid: bool) -> dict[str, int | bool]:
    """What the greedy kernel is compiled with."""
    return {
        "HAS_VALID": has_valid,
        "BLOCK": max(32, triton.next_power_of_2(nodes)),
        "num_warps": 4,
        "enable_fp_fusion": False,
    }
