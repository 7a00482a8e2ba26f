"""Verification: which path of each row's tree the target accepts, and the bonus token behind it.

Greedy: follow the child that equals the target's argmax. Sampling: recursive rejection over the children of the
current node (SpecInfer, arXiv 2305.09781, algorithm 2; Sequoia, arXiv 2402.12374, algorithm 1; the chain case is
Leviathan et al., arXiv 2211.17192, appendix A):

    a child x drawn from q:        accept with probability min(1, p[x] / q[x]);
                                   else p <- norm(relu(p - q)), q <- q without x, renormalised
    a deterministic child x:       its q is one-hot: accept with p[x]; else p <- p without x, renormalised
    no child accepted:             the bonus token is drawn from what is left of p

p is the target's law after every processor; q the law the child was really drawn from. Everything is fp32.

Two corners have a rule. q exhausted (q[x] = 0: the draft had fewer candidates than children): x was not drawn from q,
so it is verified as deterministic. Residual zero (p = q up to rounding, where a rejection has probability zero in
exact arithmetic): p is kept without x, or as it is if x was all it had.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from specplug.random import draw
from specplug.tree import DETERMINISTIC, TreeBatch, TreeShape, level_widths


@dataclass(frozen=True, slots=True)
class Targets:
    """What the target says at every node, after every processor with the node's own prefix.

    Either `tokens` [B, N] int64 (greedy: the argmax) or `probs` [B, N, V] float32 (sampling: the law; a greedy row
    in a sampled batch has one-hot laws).
    """

    tokens: Tensor | None = None
    probs: Tensor | None = None


@dataclass(frozen=True)
class Verdict:
    """The accepted path of each row. P = longest possible path, root included.

    `path` [B, P] int64: node indices from the root on; beyond the accepted part it repeats the last accepted node.
    `num_accepted` [B] int64: accepted draft tokens. `bonus` [B] int64: the token the target adds behind them.
    """

    path: Tensor
    num_accepted: Tensor
    bonus: Tensor

    @cached_property
    def accepted(self) -> list[int]:
        """`num_accepted` as integers; waits for the device, once."""
        found: list[int] = self.num_accepted.tolist()
        return found

    def tokens(self, trees: TreeBatch) -> Tensor:
        """New tokens a row, [B, P] int64: accepted draft tokens, then the bonus; what follows repeats the bonus."""
        accepted = trees.tokens.gather(1, self.path[:, 1:])
        new = torch.cat([accepted, self.bonus[:, None]], dim=1)
        column = torch.arange(new.shape[1], device=new.device)
        return torch.where(column < self.num_accepted[:, None], new, self.bonus[:, None])


def verify_greedy(trees: TreeBatch, targets: Tensor) -> Verdict:
    """Longest path whose every token is the target's argmax at its parent. `targets` [B, N] int64."""
    num_rows, num_nodes = trees.tokens.shape
    if num_nodes == 1:
        zero = torch.zeros_like(targets)
        return Verdict(path=zero, num_accepted=zero[:, 0], bonus=targets[:, 0])
    if trees.shape is not None and trees.shape.is_chain:
        return _verify_greedy_chain(trees, targets)
    parents = trees.parents.clamp(min=0).expand(num_rows, -1)
    match = trees.tokens == targets.gather(1, parents)
    if trees.valid is not None:
        match &= trees.valid
    match[:, 0] = True
    broken = (~match)[:, None, :] & trees.ancestors
    # the deepest node without a broken ancestor; the first such node when equal siblings both match
    depths = torch.where(broken.any(-1), -1, trees.depths)
    best = depths.argmax(dim=1)
    num_accepted = depths.gather(1, best[:, None]).squeeze(1)
    bonus = targets.gather(1, best[:, None]).squeeze(1)
    return Verdict(_path_to(trees, best), num_accepted, bonus)


def _verify_greedy_chain(trees: TreeBatch, targets: Tensor) -> Verdict:
    """The same for chains, where the accepted path is the part before the first token that differs."""
    match = trees.tokens[:, 1:] == targets[:, :-1]
    if trees.valid is not None:
        match &= trees.valid[:, 1:]
    num_accepted = match.cumprod(dim=1).sum(dim=1)
    path = torch.minimum(trees.depths, num_accepted[:, None])
    return Verdict(path, num_accepted, targets.gather(1, num_accepted[:, None]).squeeze(1))


def _path_to(trees: TreeBatch, leaf: Tensor) -> Tensor:
    """Nodes from the root to `leaf` [B], padded by repeating the leaf: [B, P]."""
    if trees.shape is not None:
        return _paths(trees.shape, leaf.device)[leaf]
    num_rows, num_nodes = trees.tokens.shape
    on_path = trees.ancestors.expand(num_rows, -1, -1)[torch.arange(num_rows, device=leaf.device), leaf]
    depths = trees.depths.expand(num_rows, -1)
    path = leaf[:, None].repeat(1, trees.max_depth + 1)
    # nodes off the path all write to one column too many, which is dropped
    column = torch.where(on_path, depths, path.shape[1])
    nodes = torch.arange(num_nodes, device=leaf.device).expand(num_rows, -1)
    return torch.cat([path, leaf[:, None]], dim=1).scatter(1, column, nodes)[:, :-1]


@lru_cache(maxsize=256)
def _paths(shape: TreeShape, device: torch.device) -> Tensor:
    """By node of a shape that all rows share, what `_path_to` says of it: [N, P]."""
    found: list[list[int]] = [[0]]
    for node, parent in enumerate(shape.parents[1:], start=1):
        found.append([*found[parent], node])
    width = shape.depth + 1
    return torch.tensor([path + [path[-1]] * (width - len(path)) for path in found], device=device)


def verify_sampled(trees: TreeBatch, probs: Tensor, accept: Tensor, bonus: Tensor) -> Verdict:
    """Recursive rejection down the tree, all rows at once. `probs` [B, N, V] float32.

    `accept` [B, N] uniforms, one for each node's own acceptance; `bonus` [B] uniforms for the bonus draw.
    """
    num_rows = trees.tokens.shape[0]
    rows = torch.arange(num_rows, device=probs.device)
    children = trees.children.expand(num_rows, -1, -1)
    node = torch.zeros(num_rows, dtype=torch.int64, device=probs.device)
    num_accepted = torch.zeros_like(node)
    p = probs[:, 0]
    path = [node]
    walking = torch.ones_like(node, dtype=torch.bool)
    for width in _widths(trees):
        tried = children[rows, node, :width]
        node, p, walking = _verify_children(trees, probs, accept, tried, node, p, walking)
        num_accepted = num_accepted + walking
        path.append(node)
        if not _any(walking):
            break
    while len(path) <= trees.max_depth:
        path.append(node)
    return Verdict(torch.stack(path, dim=1), num_accepted, draw(p, bonus))


def _widths(trees: TreeBatch) -> tuple[int, ...]:
    """Most children of a node, level by level down to the last but one."""
    if trees.shape is None:
        return (trees.children.shape[-1],) * trees.max_depth
    return level_widths(trees.shape)


def _any(mask: Tensor) -> bool:
    """Whether any is set, where that is cheap to know; elsewhere the look would wait for the device, and may be set."""
    return mask.device.type != "cpu" or bool(mask.any())


def _verify_children(
    trees: TreeBatch, probs: Tensor, accept: Tensor, children: Tensor, node: Tensor, p: Tensor, walking: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """One level: try the `children` [B, C] of `node` [B] in order. Returns the next node, its p, and who moved on."""
    rows = torch.arange(len(node), device=node.device)
    moved = torch.zeros_like(walking)
    q: Tensor | None = None
    law_before = torch.full_like(node, DETERMINISTIC)
    for rank in range(children.shape[1]):
        child = children[:, rank]
        trying = walking & ~moved & (child >= 0)
        child = child.clamp(min=0)
        if trees.valid is not None:
            trying = trying & trees.valid[rows, child]
        if not _any(trying):
            continue
        token = trees.tokens[rows, child]
        p_token = p[rows, token]
        if trees.laws is None or trees.law_index is None:
            q_token, q_now = torch.ones_like(p_token), None
        else:
            law = trees.law_index.expand(len(node), -1)[rows, child]
            fresh = trees.laws[rows, law.clamp(min=0)]
            q = fresh if q is None else torch.where((law == law_before)[:, None], q, fresh)
            law_before = law
            q_token = q[rows, token]
            drawn = (law != DETERMINISTIC) & (q_token > 0)
            q_token = torch.where(drawn, q_token, 1.0)
            q_now = torch.where(drawn[:, None], q, 0.0)
        # float64: a float32 uniform may round up to 1, and a certain token would be refused
        taken = trying & (accept[rows, child] * q_token < p_token)
        rejected = trying & ~taken
        if _any(rejected):
            p = torch.where(rejected[:, None], _residual(p, q_now, token), p)
            if q is not None and rank + 1 < children.shape[1]:
                q = torch.where(rejected[:, None], _without(q, token), q)
        node = torch.where(taken, child, node)
        moved = moved | taken
    return node, torch.where(moved[:, None], probs[rows, node], p), moved


def _residual(p: Tensor, q: Tensor | None, token: Tensor) -> Tensor:
    """What is left of `p` [B, V] after `token` [B], drawn from `q` (rows of zeros or None: one-hot), was rejected."""
    without = _without(p, token)
    if q is None:
        return without
    rest = (p - q).clamp_(min=0)
    mass = rest.sum(-1, keepdim=True)
    deterministic = ~q.any(-1, keepdim=True)
    return torch.where(deterministic | (mass <= 0), without, rest / mass.clamp(min=torch.finfo(p.dtype).tiny))


def _without(law: Tensor, token: Tensor) -> Tensor:
    """`law` [B, V] without `token` [B], renormalised; unchanged where nothing else would be left."""
    rest = law.scatter(1, token[:, None], 0.0)
    mass = rest.sum(-1, keepdim=True)
    return torch.where(mass > 0, rest / mass.clamp(min=torch.finfo(law.dtype).tiny), law)
