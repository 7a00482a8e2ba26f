"""A tree as first children and next siblings: the form in which SGLang walks one."""

from __future__ import annotations

import torch
from torch import Tensor

from specplug import TreeBatch


def links(trees: TreeBatch) -> tuple[Tensor, Tensor]:
    """First child and next sibling of every node, -1 where there is none: two [B, N] int64 on the CPU."""
    rows, nodes = trees.tokens.shape
    children = trees.children.expand(rows, -1, -1).cpu()
    first_child = children[:, :, 0].clone()
    next_sibling = torch.full((rows, nodes), -1)
    elder, younger = children[:, :, :-1].flatten(1), children[:, :, 1:].flatten(1)
    row = torch.arange(rows)[:, None].expand_as(elder)
    real = elder >= 0
    next_sibling[row[real], elder[real]] = younger[real]
    return first_child, next_sibling
