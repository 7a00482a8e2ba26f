"""The token tree: its static shape, and a batch of trees filled with proposed tokens.

Node 0 is the root: the newest committed token, whose keys and values are not in the cache yet. `parents[i] < i`,
`parents[0] == -1`. Nodes stand level by level (breadth first), so a level is a contiguous range of nodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from specplug.errors import OptionError, ProposalError

DETERMINISTIC = -1  # law index of a node that was not drawn at random: its own one-hot law


@dataclass(frozen=True, slots=True)
class TreeShape:
    """The topology of a token tree.

    `parents`: parent of each node, breadth first, root = -1. `priority`: rank of each node in the order in which a
    smaller tree would keep them (root 0; a parent before its children, a child before its next sibling: children are
    drawn and verified in order, so an earlier one cannot be dropped alone); a row that gets only `k` draft tokens keeps
    the nodes with `priority <= k`. Hashable: derived tensors are cached by shape and device.
    """

    parents: tuple[int, ...]
    priority: tuple[int, ...] = field(default=())
    # (start, stop) of the nodes of each level, the root's first
    levels: tuple[tuple[int, int], ...] = field(init=False, repr=False, compare=False)
    _hash: int = field(init=False, repr=False, compare=False)  # once: shapes are looked up several times a round

    def __post_init__(self) -> None:
        if not self.parents or self.parents[0] != -1:
            raise OptionError(f"A tree needs a root: parents[0] must be -1, got {self.parents[:1]}.")
        depths = [0]
        for node, parent in enumerate(self.parents[1:], start=1):
            if not 0 <= parent < node:
                raise OptionError(f"Node {node} has parent {parent}; a parent must come before its child.")
            depths.append(depths[parent] + 1)
        if depths != sorted(depths):
            raise OptionError("Nodes must stand level by level; use TreeShape.from_parents to sort them.")
        if not self.priority:
            object.__setattr__(self, "priority", tuple(range(len(self.parents))))
        self._check_priority()
        starts = [depths.index(level) for level in range(depths[-1] + 1)]
        object.__setattr__(self, "levels", tuple(zip(starts, [*starts[1:], len(depths)], strict=True)))
        object.__setattr__(self, "_hash", hash((self.parents, self.priority)))

    def _check_priority(self) -> None:
        if sorted(self.priority) != list(range(len(self.parents))):
            raise OptionError(f"priority must rank every node from 0 to {len(self.parents) - 1}, got {self.priority}.")
        newest: dict[int, int] = {}  # the last child seen of each node
        for node, parent in enumerate(self.parents[1:], start=1):
            if self.priority[parent] >= self.priority[node]:
                raise OptionError(f"Node {node} has a better priority than its parent {parent}.")
            elder = newest.get(parent)
            if elder is not None and self.priority[elder] >= self.priority[node]:
                raise OptionError(f"Node {node} has a better priority than its elder sibling {elder}.")
            newest[parent] = node

    def __hash__(self) -> int:
        return self._hash

    @classmethod
    def from_parents(cls, parents: list[int]) -> TreeShape:
        """Sort nodes given in any topological order breadth first; the given order becomes the priority."""
        if not all(parent < node for node, parent in enumerate(parents)):
            raise OptionError(f"A parent must come before its child, got parents {parents}.")
        depths = _depths(parents)
        order = sorted(range(len(parents)), key=lambda node: (depths[node], node))
        place = {node: i for i, node in enumerate(order)}
        return cls(tuple(-1 if parents[node] < 0 else place[parents[node]] for node in order), tuple(order))

    @property
    def num_nodes(self) -> int:
        """Nodes, the root included."""
        return len(self.parents)

    @property
    def size(self) -> int:
        """Draft tokens: nodes without the root."""
        return len(self.parents) - 1

    @property
    def depth(self) -> int:
        """Draft tokens on the longest path."""
        return len(self.levels) - 1

    @property
    def is_chain(self) -> bool:
        """No node has a sibling."""
        return self.depth == self.size

    def cut(self, depth: int) -> TreeShape:
        """The part of the tree with at most `depth` draft tokens on a path."""
        return self if depth >= self.depth else _cut(self, max(depth, 0))


@dataclass(frozen=True, slots=True)
class ShapeTensors:
    """Tensors derived from a shape, on one device. N nodes, C most children of a node, I inner nodes."""

    parents: Tensor  # [N] int64, root -1
    depths: Tensor  # [N] int64
    ranks: Tensor  # [N] int64: which child of its parent a node is (0 first); root 0
    ancestors: Tensor  # [N, N] bool: [i, j] = j is i or an ancestor of i
    children: Tensor  # [N, C] int64, -1 where there is none
    laws: Tensor  # [N] int64: index of the parent among the inner nodes; root -1


ROOT_ONLY = TreeShape((-1,))


@lru_cache(maxsize=512)
def _cut(shape: TreeShape, depth: int) -> TreeShape:
    stop = shape.levels[depth][1]
    kept = shape.priority[:stop]
    ranks = {p: i for i, p in enumerate(sorted(kept))}
    return TreeShape(shape.parents[:stop], tuple(ranks[p] for p in kept))


@lru_cache(maxsize=512)
def child_counts(shape: TreeShape) -> tuple[int, ...]:
    """Number of children of each node."""
    counts = [0] * shape.num_nodes
    for parent in shape.parents[1:]:
        counts[parent] += 1
    return tuple(counts)


@lru_cache(maxsize=512)
def level_widths(shape: TreeShape) -> tuple[int, ...]:
    """Most children of a node, of every level but the last."""
    counts = child_counts(shape)
    return tuple(max(counts[start:stop]) for start, stop in shape.levels[:-1])


@lru_cache(maxsize=512)
def inner_nodes(shape: TreeShape) -> tuple[int, ...]:
    """Nodes that have children, in node order."""
    return tuple(node for node, count in enumerate(child_counts(shape)) if count)


@lru_cache(maxsize=256)
def shape_tensors(shape: TreeShape, device: torch.device) -> ShapeTensors:
    """Derived tensors of `shape` on `device`, computed once."""
    n = shape.num_nodes
    counts = child_counts(shape)
    children = torch.full((n, max(1, max(counts))), -1)
    ranks = [0] * n
    ancestors = torch.eye(n, dtype=torch.bool)
    seen = [0] * n
    for node, parent in enumerate(shape.parents[1:], start=1):
        ranks[node] = seen[parent]
        children[parent, seen[parent]] = node
        seen[parent] += 1
        ancestors[node] |= ancestors[parent]
    place = {node: i for i, node in enumerate(inner_nodes(shape))}
    laws = torch.tensor([-1] + [place[parent] for parent in shape.parents[1:]])
    return ShapeTensors(
        parents=torch.tensor(shape.parents).to(device),
        depths=torch.tensor(_depths(shape.parents)).to(device),
        ranks=torch.tensor(ranks).to(device),
        ancestors=ancestors.to(device),
        children=children.to(device),
        laws=laws.to(device),
    )


def _depths(parents: Sequence[int]) -> list[int]:
    depths: list[int] = []
    for parent in parents:
        depths.append(0 if parent < 0 else depths[parent] + 1)
    return depths


@dataclass(frozen=True, slots=True)
class TreeBatch:
    """One token tree a row, all padded to N nodes.

    Rows may share one `shape` (then `parents`, `depths`, `ancestors`, `children` have a leading 1) or each have their
    own. A padding node has `valid` False: it is never accepted and the host may compute anything for it.
    Children of one node stand in the order in which they are to be verified; those of one law stand together.
    """

    tokens: Tensor  # [B, N] int64; column 0 is the root
    parents: Tensor  # [B or 1, N] int64, root -1
    depths: Tensor  # [B or 1, N] int64
    ancestors: Tensor  # [B or 1, N, N] bool
    children: Tensor  # [B or 1, N, C] int64, -1 = none
    shape: TreeShape | None = None  # set when every row has this shape
    valid: Tensor | None = None  # [B, N] bool; None = every node is real
    laws: Tensor | None = None  # [B, M, V] float32: the laws that children were drawn from, without replacement
    law_index: Tensor | None = None  # [B or 1, N] int64 into laws, or DETERMINISTIC; None = all deterministic
    confidence: Tensor | None = None  # [B, N] float32: the draft's P(token | parent), NaN where unknown; to be shown

    @property
    def num_rows(self) -> int:
        return self.tokens.shape[0]

    @property
    def num_nodes(self) -> int:
        return self.tokens.shape[1]

    @property
    def max_depth(self) -> int:
        """Most draft tokens on a path of any row (an upper bound: from the shape, else from N)."""
        return self.shape.depth if self.shape is not None else self.num_nodes - 1


def roots_only(roots: Tensor) -> TreeBatch:
    """Trees that propose nothing: plain decoding. `roots` [B] int64."""
    return fill_shape(ROOT_ONLY, roots[:, None])


def fill_shape(shape: TreeShape, tokens: Tensor, laws: Tensor | None = None, valid: Tensor | None = None) -> TreeBatch:
    """Trees of one `shape` with `tokens` [B, N]; `laws` [B, I, V] by inner node if the children were drawn from them."""
    if tokens.shape[1] != shape.num_nodes:
        raise ProposalError(f"A tree of {shape.num_nodes} nodes needs as many tokens a row, got {tokens.shape[1]}.")
    t = _shared(shape, tokens.device)
    return TreeBatch(
        tokens=tokens,
        parents=t.parents,
        depths=t.depths,
        ancestors=t.ancestors,
        children=t.children,
        shape=shape,
        valid=valid,
        laws=laws,
        law_index=None if laws is None else t.laws,
    )


@lru_cache(maxsize=256)
def _shared(shape: TreeShape, device: torch.device) -> ShapeTensors:
    """`shape_tensors` as all rows of a batch share them: each with a leading 1."""
    t = shape_tensors(shape, device)
    return ShapeTensors(*(getattr(t, name)[None] for name in t.__slots__))


@lru_cache(maxsize=256)
def chain_shape(length: int) -> TreeShape:
    """`length` draft tokens, one after another."""
    return TreeShape(tuple(range(-1, length)))


def chain_trees(roots: Tensor, tokens: Tensor, counts: Tensor | None = None) -> TreeBatch:
    """Chains of deterministic tokens: `roots` [B], `tokens` [B, L]; row b uses its first `counts[b]` (default: all)."""
    length = tokens.shape[1]
    shape = chain_shape(length)
    valid = None
    if counts is not None:
        valid = torch.arange(length + 1, device=tokens.device)[None] <= counts[:, None]
    return fill_shape(shape, torch.cat([roots[:, None], tokens], dim=1), valid=valid)
