"""Verification in torch operations: what the Triton kernels are compared with. One tree for all rows, none of it padding.

The rules are those of ``tree_sampling_triton`` and ``tree_greedy_triton``; on a GPU nothing is read back, so every level is
walked whether or not a row still walks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from specplug_kernels.bench.trees import Tree
from specplug_kernels.tree_verdict import TreeVerdict


def verify_greedy_torch(tokens: Tensor, tree: Tree, targets: Tensor) -> TreeVerdict:
    """Longest path whose every token is the target's choice at its parent. ``tokens`` and ``targets`` [B, N] int64."""
    match = tokens == targets[:, tree.parents.clamp(min=0)]
    match[:, 0] = True
    broken = ((~match)[:, None, :] & tree.ancestors).any(-1)
    depths = torch.where(broken, -1, tree.depths)
    best = depths.argmax(1)
    num_accepted = depths.gather(1, best[:, None])[:, 0]
    column = torch.where(tree.ancestors[best], tree.depths, tree.width)
    path = best[:, None].repeat(1, tree.width + 1)  # nodes off the path write to one column too many, which is dropped
    nodes = torch.arange(tokens.shape[1], device=tokens.device).expand_as(column)
    return TreeVerdict(path.scatter(1, column, nodes)[:, :-1], num_accepted, targets.gather(1, best[:, None])[:, 0])


def verify_sampled_torch(
    tokens: Tensor, tree: Tree, probs: Tensor, accept: Tensor, bonus: Tensor, laws: Tensor, law_index: Tensor
) -> TreeVerdict:
    """Recursive rejection; the children of a node have one law.

    ``tokens`` [B, N] int64, ``probs`` [B, N, V] float32, ``accept`` [B, N] and ``bonus`` [B] float64, ``laws`` [B, M, V] float32,
    ``law_index`` [N] int64 into it, of the law that a node was drawn from.
    """
    rows = torch.arange(len(tokens), device=tokens.device)
    node = torch.zeros_like(rows)
    p, walking, count, path = probs[:, 0], torch.ones_like(rows, dtype=torch.bool), torch.zeros_like(rows), [node]
    for _ in range(tree.width - 1):
        children, q = tree.children[node], None
        moved = torch.zeros_like(walking)
        for rank in range(children.shape[1]):
            child = children[:, rank]
            trying = walking & ~moved & (child >= 0)
            child = child.clamp(min=0)
            token, q = tokens[rows, child], laws[rows, law_index[child]] if q is None else q
            q_token, p_token = q[rows, token], p[rows, token]
            drawn = q_token > 0
            taken = trying & (accept[rows, child] * torch.where(drawn, q_token, 1.0) < p_token)
            refused = (trying & ~taken)[:, None]
            p = torch.where(refused, _residual(p, q, token, drawn), p)
            q = torch.where(refused, _without(q, token), q)
            node, moved = torch.where(taken, child, node), moved | taken
        p = torch.where(moved[:, None], probs[rows, node], p)
        walking, count = moved, count + moved
        path.append(node)
    return TreeVerdict(torch.stack(path, 1), count, _draw(p, bonus))


def _residual(p: Tensor, q: Tensor, token: Tensor, drawn: Tensor) -> Tensor:
    """What is left of ``p`` [B, V] after ``token`` [B] was refused: of p - q if it was drawn from ``q``."""
    without, rest = _without(p, token), (p - q).clamp(min=0)
    mass = rest.sum(-1, keepdim=True)
    return torch.where(drawn[:, None] & (mass > 0), rest / mass.clamp(min=torch.finfo(p.dtype).tiny), without)


def _without(law: Tensor, token: Tensor) -> Tensor:
    """``law`` [B, V] without ``token`` [B], renormalised; unchanged where nothing else would be left."""
    rest = law.scatter(1, token[:, None], 0.0)
    mass = rest.sum(-1, keepdim=True)
    return torch.where(mass > 0, rest / mass.clamp(min=torch.finfo(law.dtype).tiny), law)


def _draw(weights: Tensor, uniform: Tensor) -> Tensor:
    """One index a row by inversion: ``weights`` [B, V], ``uniform`` [B]. An index of weight zero is never drawn."""
    cumulative = weights.double().cumsum(-1)
    total = cumulative[:, -1:]
    threshold = torch.minimum(uniform[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, threshold, right=True)[:, 0]
