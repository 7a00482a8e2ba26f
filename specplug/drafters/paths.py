"""Trees of deterministic tokens that were put together from overlapping pieces: what stands at the same path is proposed once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from specplug.drafters.padding import padded_trees
from specplug.tree import TreeBatch

_BEYOND = -2  # no token, where a path has ended


def lineage_of(parents: Sequence[int]) -> Tensor:
    """By depth, each node's ancestor there, itself the last; n, of n nodes, beyond: [n, depth + 1] int64."""
    paths: list[list[int]] = []
    for node, parent in enumerate(parents):
        paths.append([*(paths[parent] if parent >= 0 else []), node])
    longest = max(map(len, paths))
    return torch.tensor([path + [len(paths)] * (longest - len(path)) for path in paths])


def each_path_once(tokens: Tensor, there: Tensor, parents: Tensor, lineage: Tensor) -> tuple[TreeBatch, Tensor]:
    """Trees of `tokens` [B, n] below `parents` [n], of which those `there` [B, n] are proposed; of equal nodes the first stands for
    all.

    What hangs on a node that is not there must not be there either. Also returns where each node went, [B, n] int64 (arbitrary for
    those that are not there). Waits for the device once.
    """
    rows, count = tokens.shape
    node = torch.arange(count, device=tokens.device)
    paths = torch.nn.functional.pad(tokens, (0, 1), value=_BEYOND)[:, lineage]  # [B, n, depth + 1]
    same = (paths[:, :, None] == paths[:, None]).all(-1) & there[:, None]
    first = same.int().argmax(-1)
    kept = (first == node) & there
    places = kept.cumsum(1).sub(1).gather(1, first).where(there, count)  # a place too many takes what is not there
    above = places[:, parents.clamp(min=0)]
    empty = torch.zeros((rows, count + 1), dtype=torch.int64, device=tokens.device)
    children = empty.scatter_add(1, above[:, 1:], kept[:, 1:].long())
    sizes = kept.sum(1)
    width, most = torch.stack([sizes.max(), children.max()]).tolist()
    above = above.where(parents >= 0, -1)
    trees = padded_trees(
        empty.scatter(1, places, tokens)[:, :width],
        empty.scatter(1, places, above)[:, :width],
        None if rows == 1 else node[:width] < sizes[:, None],
        most,
    )
    return trees, places.clamp(max=width - 1)
