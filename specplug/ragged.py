"""Trees whose rows differ in shape: what a drafter returns that does not fill one `TreeShape` for the whole batch."""

from __future__ import annotations

import torch
from torch import Tensor

from specplug.tree import TreeBatch


def ragged_trees(
    tokens: Tensor,
    parents: Tensor,
    valid: Tensor | None = None,
    laws: Tensor | None = None,
    law_index: Tensor | None = None,
) -> TreeBatch:
    """Trees of `tokens` [B, N] under `parents` [B, N] int64: -1 for the root in column 0, else an earlier column.

    `valid` [B, N] marks the real nodes (a padding node may have any earlier parent). Siblings are verified in column
    order. `laws` [B, M, V] float32 with `law_index` [B, N]: the laws that nodes were drawn from, without replacement.
    """
    num_rows, num_nodes = tokens.shape
    nodes = torch.arange(num_nodes, device=tokens.device)
    depths = torch.zeros_like(parents)
    ancestors = torch.eye(num_nodes, dtype=torch.bool, device=tokens.device).repeat(num_rows, 1, 1)
    ranks = torch.zeros_like(parents)  # which child of its parent a node is
    seen = torch.zeros_like(parents)
    for node in range(1, num_nodes):
        parent = parents[:, node, None]
        depths[:, node] = depths.gather(1, parent).squeeze(1) + 1
        ancestors[:, node] |= ancestors.gather(1, parent[..., None].expand(-1, -1, num_nodes)).squeeze(1)
        ranks[:, node] = seen.gather(1, parent).squeeze(1)
        seen.scatter_add_(1, parent, torch.ones_like(parent))
    width = max(1, int(seen.max()))
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
