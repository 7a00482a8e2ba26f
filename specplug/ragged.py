"""Trees whose rows differ in shape: what a drafter returns that does not fill one `TreeShape` for the whole batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from specplug.tree import TreeBatch, TreeShape


def ragged_trees(
    tokens: Tensor,
    parents: Tensor,
    valid: Tensor | None = None,
    laws: Tensor | None = None,
    law_index: Tensor | None = None,
    width: int | None = None,
) -> TreeBatch:
    """Trees of `tokens` [B, N] under `parents` [B, N] int64: -1 for the root in column 0, else an earlier column.

    `valid` [B, N] marks the real nodes (a padding node may have any earlier parent). Siblings are verified in column
    order. `laws` [B, M, V] float32 with `law_index` [B, N]: the laws that nodes were drawn from, without replacement.
    `width`: most children of a node; None asks the device.
    """
    num_rows, num_nodes = tokens.shape
    nodes = torch.arange(num_nodes, device=tokens.device)
    ancestors = parents[..., None] == nodes  # first its parent alone
    siblings = (parents[:, :, None] == parents[:, None, :]).tril(-1)
    ancestors = ancestors | torch.eye(num_nodes, dtype=torch.bool, device=tokens.device)
    for _ in range(max(1, (num_nodes - 1).bit_length())):  # then theirs, twice as far up every time
        reached = torch.bmm(ancestors.float(), ancestors.float()) > 0
        ancestors = ancestors | reached
    depths = ancestors.sum(2) - 1
    ranks = siblings.sum(2)  # which child of its parent a node is
    width = max(1, int(ranks.max()) + 1) if width is None else max(1, width)
    flat = torch.full((num_rows, num_nodes * width), -1, dtype=torch.int64, device=tokens.device)
    flat.scatter_(1, (parents * width + ranks)[:, 1:], nodes[1:].expand(num_rows, -1))
    return TreeBatch(
        tokens=tokens,
        parents=parents,
        depths=depths,
        ancestors=ancestors,
        children=flat.view(num_rows, num_nodes, width),
        valid=valid,
        laws=laws,
        law_index=law_index,
    )


def limited(trees: TreeBatch, shape: TreeShape, sizes: Sequence[int]) -> TreeBatch:
    """`trees` with only the first `sizes[b]` draft tokens of row b, in `shape`'s order; the others become padding.

    Trees of another topology are cut in their own order of nodes.
    """
    device = trees.tokens.device
    order = shape.priority if trees.shape == shape else range(trees.num_nodes)
    rank = torch.tensor(list(order), device=device)
    kept = rank[None] <= torch.tensor(list(sizes), device=device)[:, None]
    return replace(trees, valid=kept if trees.valid is None else kept & trees.valid)
