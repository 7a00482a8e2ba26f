"""The part of `sgl_kernel` that n-gram speculation imports: a test fixture like the rest of this package."""

from __future__ import annotations

import torch
from torch import Tensor


def reconstruct_indices_from_tree_mask(
    tree_mask: Tensor,
    verified_seq_len: Tensor,
    positions: Tensor,
    retrieve_index: Tensor,
    retrieve_next_token: Tensor,
    retrieve_next_sibling: Tensor,
    batch_size: int,
    draft_token_num: int,
) -> None:
    """From "node i sees node j" to positions and links. Parents come before their children; -1 is "none"."""
    rows, width = batch_size, draft_token_num
    node = torch.arange(width)
    above = tree_mask.view(rows, width, width).bool() & (node[None, :] < node[:, None])  # [row, node, its ancestors]
    parent = torch.where(above, node, -1).amax(-1)
    brothers = (parent[:, :, None] == parent[:, None, :]) & (parent >= 0)[:, :, None] & (node > node[:, None])
    child = torch.where(above.transpose(1, 2), node, width).amin(-1)
    sibling = torch.where(brothers, node, width).amin(-1)
    outputs = (
        (positions, above.sum(-1) + verified_seq_len.view(rows, 1)),
        (retrieve_index, torch.arange(rows * width)),
        (retrieve_next_token, torch.where(child < width, child, -1)),
        (retrieve_next_sibling, torch.where(sibling < width, sibling, -1)),
    )
    for tensor, value in outputs:
        tensor.copy_(value.view_as(tensor))
