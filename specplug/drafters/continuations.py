"""Trees of the most probable continuations: what drafters propose that look a row's last tokens up in texts.

SuffixDecoding (arXiv 2411.04975, section 4) grows its tree so, greedily by the share of the occurrences that go a node's way, and
larger the longer the match is; REST (arXiv 2311.08252, section 3.2) keeps the nodes that most of the found continuations share.
Nothing is drawn, so all nodes are deterministic: the same tree serves greedy and sampled rows.

A tree has a few nodes and as few occurrences stand behind it, so it is made in plain Python: a tensor operation costs more than it
could save.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from itertools import repeat
from operator import itemgetter
from typing import NamedTuple

import torch
from torch import Tensor

from specplug.corpus.occurrences import NEAR, Occurrence
from specplug.drafters.padding import padded_trees
from specplug.errors import OptionError
from specplug.tree import TreeBatch, TreeShape, chain_trees, roots_only

Weighted = tuple[float, Sequence[int]]  # an occurrence: how much it counts, and what follows there


class Node(NamedTuple):
    """A token that may be proposed. `parent`: its column in the row's tree, 0 = the root. `share`: of the occurrences that begin so."""

    token: int
    parent: int
    share: float


@dataclass(frozen=True, slots=True)
class Rule:
    """Which nodes are proposed. `name`: of the drafter, in errors.

    `min_probability`: nodes that a smaller share of the occurrences leads to are not. `per_match`: nodes a row may have for every
    token that its longest occurrence matches: what has gone on alike for long goes on for long.
    """

    name: str
    min_probability: float
    per_match: float

    def __post_init__(self) -> None:
        if not 0 <= self.min_probability <= 1:
            raise OptionError(
                f"{self.name}: min_probability={self.min_probability} must be from 0 (propose everything) to 1."
            )
        if not self.per_match > 0:
            raise OptionError(
                f"{self.name}: per_match={self.per_match} must be above 0; as large as the tree, it limits nothing."
            )

    @property
    def key(self) -> str:
        """Both, for a drafter's key."""
        return f"{self.min_probability:g}, {self.per_match:g}"


def continuation_trees(
    roots: Tensor, found: Sequence[list[Occurrence]], shape: TreeShape, rule: Rule, explain: bool = False
) -> TreeBatch:
    """The most probable nodes that `rule` allows for every row, at most `shape.size`: `roots` [B] int64, on their device.

    `found`: of each row; no tree is deeper than it looks ahead. Where `shape` is a chain so is every row's tree: of the ways to go
    on the most probable. Nodes stand in order of falling probability. `explain`: give the probabilities too.
    """
    if shape.is_chain:
        nodes = [likeliest_path(row, shape.size, rule) for row in found]
    else:
        nodes = [best_nodes(row, shape.size, rule) for row in found]
    longest = max(map(len, nodes))
    if not longest:
        return roots_only(roots)
    chains = shape.is_chain or all(node.parent == place for row in nodes for place, node in enumerate(row))
    trees = _as_chains(roots, nodes, longest) if chains else _as_trees(roots, nodes, longest)
    if not explain:
        return trees
    shares = [[1.0, *(node.share for node in row)] for row in nodes]
    own = [
        [torch.nan] + [node.share / known[node.parent] for node in row]
        for row, known in zip(nodes, shares, strict=True)
    ]
    confidence = [row + [torch.nan] * (1 + longest - len(row)) for row in own]
    return replace(trees, confidence=torch.tensor(confidence, dtype=torch.float32, device=roots.device))


def likeliest_path(found: list[Occurrence], size: int, rule: Rule) -> list[Node]:
    """A single path: at each token the way that most of the occurrences go, the longest match's among equals."""
    members, total, size = _weighted(found, size, rule)
    path: list[Node] = []
    share = 1.0
    while len(members) > 1 and len(path) < size:
        branches = _branches(members, len(path))
        if not branches:
            return path
        token, weight, members = max(branches, key=itemgetter(1))
        share = weight / total
        if share < rule.min_probability:
            return path
        path.append(Node(token, len(path), share))
    for _, follows in members:  # the only one that is left goes on as it goes on
        rest = follows[len(path) : size]
        path += map(Node, rest, range(len(path), size), repeat(share))
    return path


def best_nodes(found: list[Occurrence], size: int, rule: Rule) -> list[Node]:
    """The nodes of one row, the most probable first: a parent before its child, the longer match before its equals."""
    members, total, size = _weighted(found, size, rule)
    nodes: list[Node] = []
    waiting: list[
        tuple[float, int, int, int, int, list[Weighted]]
    ] = []  # minus weight, order, token, parent, depth, whose
    parent, depth, order = 0, 0, 0
    while len(nodes) < size:
        for token, share, part in _branches(members, depth):
            if share >= rule.min_probability * total:
                order += 1
                heappush(waiting, (-share, order, token, parent, depth, part))
        if not waiting:
            break
        minus, _, token, above, level, members = heappop(waiting)
        nodes.append(Node(token, above, -minus / total))
        parent, depth = len(nodes), level + 1
    return nodes


def _weighted(found: list[Occurrence], size: int, rule: Rule) -> tuple[list[Weighted], float, int]:
    """The occurrences that count, what they weigh together, and how many nodes they may propose: at most `size`."""
    longest = max((matched for matched, _ in found), default=0)
    # powers of two: sums of them are exact, so that no child outweighs its parent
    members = [(2.0 ** (matched - longest), follows) for matched, follows in found if matched > longest - NEAR]
    return members, sum(weight for weight, _ in members), min(size, int(rule.per_match * longest))


def _branches(members: list[Weighted], depth: int) -> list[tuple[int, float, list[Weighted]]]:
    """What occurrences that have gone on alike for `depth` tokens say next: token, weight, and who says so; only the `one` of most."""
    groups: dict[int, list[Weighted]] = {}
    for member in members:
        if len(member[1]) > depth:
            groups.setdefault(member[1][depth], []).append(member)
    return [(token, sum(weight for weight, _ in part), part) for token, part in groups.items()]


def _as_chains(roots: Tensor, nodes: Sequence[list[Node]], longest: int) -> TreeBatch:
    """One tensor goes to the device: each row's tokens and, if they are not the same, how many."""
    tokens = [[node.token for node in row] for row in nodes]
    if all(len(row) == longest for row in tokens):
        return chain_trees(roots, torch.tensor(tokens, device=roots.device))
    packed = [[*row, *[0] * (longest - len(row)), len(row)] for row in tokens]
    there = torch.tensor(packed, device=roots.device)
    return chain_trees(roots, there[:, :-1], there[:, -1])


def _as_trees(roots: Tensor, nodes: Sequence[list[Node]], longest: int) -> TreeBatch:
    """One tensor goes to the device: tokens, parents, and whether a node is real."""
    empty = [[0] * (longest - len(row)) for row in nodes]
    tokens = [[0, *(node.token for node in row), *pad] for row, pad in zip(nodes, empty, strict=True)]
    parents = [[-1, *(node.parent for node in row), *pad] for row, pad in zip(nodes, empty, strict=True)]
    real = [[1] * (1 + len(row)) + pad for row, pad in zip(nodes, empty, strict=True)]
    width = max(max(map(above.count, above), default=0) for above in ([node.parent for node in row] for row in nodes))
    there = torch.tensor([tokens, parents, real], device=roots.device)
    there[0, :, 0] = roots
    full = all(len(row) == longest for row in nodes)
    return padded_trees(there[0], there[1], None if full else there[2].bool(), width)
