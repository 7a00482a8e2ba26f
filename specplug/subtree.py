"""The part of a tree that is kept where fewer draft tokens are affordable."""

from __future__ import annotations

from functools import lru_cache

from specplug.tree import TreeShape


@lru_cache(maxsize=512)
def beginning(shape: TreeShape, size: int) -> TreeShape:
    """The tree of `size` draft tokens that `shape` begins with, by its priority."""
    if size >= shape.size:
        return shape
    kept = [node for node, rank in enumerate(shape.priority) if rank <= size]
    places = {node: place for place, node in enumerate(kept)}
    return TreeShape(
        tuple(-1 if node == 0 else places[shape.parents[node]] for node in kept),
        tuple(shape.priority[node] for node in kept),
    )
