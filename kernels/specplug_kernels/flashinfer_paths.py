"""The three paths through FlashInfer's kernels, and what each takes. Imports no FlashInfer."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import torch

from specplug_kernels.paging import PagedShape

FLASHINFER_PATHS = {
    "merge": "the committed tokens by a kernel without a mask, the tree by one with, merged by log-sum-exp",
    "mask": "committed tokens and tree by one kernel, with a mask over all of them",
    "bitmap": "committed tokens and tree by one kernel, which looks the nodes up in a bitmap",
}
"""The paths, and what each does."""
DEVICE_TYPES = ("cuda",)
DTYPES = (torch.float16, torch.bfloat16)
HEAD_DIMS = (64, 128, 256)


def why_not_flashinfer(shape: PagedShape, num_nodes: int, path: str, num_queries: int | None = None) -> str | None:
    """What keeps one of :data:`FLASHINFER_PATHS` from serving a forward, as a phrase; ``None`` if nothing does.

    ``num_queries``: how many of the nodes ask, ``None``: all. The package is looked for, not imported.

    Raises:
        ValueError: an unknown path.
    """
    if path not in FLASHINFER_PATHS:
        raise ValueError(f"unknown path {path!r} of FlashInfer; known: {', '.join(FLASHINFER_PATHS)}")
    queries = num_nodes if num_queries is None else num_queries
    obstacles = [*_general(shape)]
    if path == "bitmap":
        obstacles += _of_bitmap(shape, num_nodes, queries)
    return next(iter(obstacles), None)


def largest_tile(head_dim: int) -> int:
    """The most packed rows (queries times query heads a KV head) that one thread block serves (utils.cuh, FA2DetermineCtaTileQ)."""
    return 128 if head_dim < 256 else 64


def _general(shape: PagedShape) -> Iterator[str]:
    if shape.device.type not in DEVICE_TYPES:
        yield f"FlashInfer's kernels are for CUDA devices, not {shape.device.type}"
    if importlib.util.find_spec("flashinfer") is None:
        yield "the flashinfer package is not installed (pip install 'specplug[flashinfer]' brings it)"
    if shape.dtype not in DTYPES:
        yield f"FlashInfer's kernels take float16 and bfloat16, not {shape.dtype}"
    if shape.head_dim not in HEAD_DIMS:
        yield f"FlashInfer's kernels are built for head dimensions 64, 128 and 256, not {shape.head_dim}"
    if shape.page_size < 1:
        yield f"a page holds at least one token, not {shape.page_size}"


def _of_bitmap(shape: PagedShape, num_nodes: int, queries: int) -> Iterator[str]:
    """See :mod:`~specplug_kernels.flashinfer_bitmap`; that parents stand before children is seen when it is planned."""
    if queries != num_nodes:
        yield f"the bitmap kernel wants all {num_nodes} nodes to ask, not {queries}"
    most, asked = largest_tile(shape.head_dim), queries * shape.groups
    if asked > most:
        yield (
            f"the bitmap kernel takes up to {most} packed rows (queries times query heads a KV head) with heads of "
            f"{shape.head_dim}, not {asked}"
        )
