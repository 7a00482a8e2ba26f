"""Filling a fixed tree shape with a drafting model, level by level: what `self` and `model` share.

Greedy rows: the children of a node are the draft's most probable tokens in order, deterministic. Sampled rows: they
are drawn from the draft's law without replacement (Sequoia, arXiv 2402.12374, section 3), and the law goes along.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from specplug.drafters.base import DraftRequest
from specplug.drafters.grow import grow
from specplug.host import Batch, DraftRunner, Host
from specplug.random import DRAFT_STREAM, draw_without_replacement, uniforms
from specplug.tree import TreeBatch, TreeShape, child_counts, fill_shape


@dataclass(frozen=True, slots=True)
class LevelPlan:
    """How the children of one level are taken from its candidates. w nodes, i of them inner, c candidates each."""

    inner: Tensor | None  # [i] int64: inner nodes within the level; None = all of them
    candidates: int  # most children of a node of this level
    pick: Tensor | None  # [children] int64 into the flattened [i, c] candidates, in node order; None = all, in order


@lru_cache(maxsize=256)
def level_plans(shape: TreeShape, device: torch.device) -> tuple[LevelPlan, ...]:
    """One plan for every level but the last."""
    counts, seen = child_counts(shape), [0] * shape.num_nodes
    plans = []
    for (start, stop), below in itertools.pairwise(shape.levels):
        level = list(range(start, stop))
        inner = [node for node in level if counts[node]]
        most = max(counts[node] for node in inner)
        pick = []
        for parent in shape.parents[slice(*below)]:  # children of different parents may stand in turn
            pick.append(inner.index(parent) * most + seen[parent])
            seen[parent] += 1
        plans.append(
            LevelPlan(
                inner=None if len(inner) == len(level) else torch.tensor([n - start for n in inner], device=device),
                candidates=most,
                pick=None if pick == list(range(len(inner) * most)) else torch.tensor(pick, device=device),
            )
        )
    return tuple(plans)


def expand(host: Host, runner: DraftRunner, request: DraftRequest) -> TreeBatch:
    """Fill `request.shape` for every row with the tokens of `runner`'s model."""
    batch, shape = request.batch, request.shape
    if request.grown and shape.size:
        return grow(host, runner, request)
    tokens = [batch.roots[:, None]]
    laws, confidence = [], []
    noise_used = 0
    plans = level_plans(shape, batch.roots.device)
    logits = runner.begin(batch, shape)
    for level, plan in enumerate(plans):
        if level:
            logits = runner.extend(tokens[-1], level)
        if plan.inner is not None:
            logits = logits.index_select(1, plan.inner)
        if batch.sampling:
            law = host.draft_law(batch, logits)
            candidates = _draw_children(batch, law, plan.candidates, noise_used)
            laws.append(law)
            noise_used += law.shape[1] * law.shape[2]
        elif plan.candidates == 1:
            candidates = logits.argmax(-1, keepdim=True)
        else:
            candidates = logits.topk(plan.candidates, dim=-1).indices
        tokens.append(_picked(candidates, plan))
        if request.explain:
            known = laws[-1] if batch.sampling else logits.float().softmax(-1)
            confidence.append(_picked(known.gather(-1, candidates), plan))
    trees = fill_shape(shape, torch.cat(tokens, dim=1), torch.cat(laws, dim=1) if laws else None)
    if not request.explain:
        return trees
    unknown = torch.full((batch.num_rows, 1), torch.nan, device=batch.roots.device)  # at the root
    return replace(trees, confidence=torch.cat([unknown, *confidence], dim=1))


def _picked(candidates: Tensor, plan: LevelPlan) -> Tensor:
    """What of `candidates` [B, i, c] the level's nodes get: [B, children]."""
    flat = candidates.flatten(1)
    return flat if plan.pick is None else flat.index_select(1, plan.pick)


def _draw_children(batch: Batch, law: Tensor, count: int, offset: int) -> Tensor:
    """`count` distinct tokens from each of `law` [B, w, V], drawn by the row's own counter from `offset` on."""
    size = law.shape[1] * law.shape[2]
    # the offset keeps the levels of one round apart: every (row, position, node, token) has its own number
    noise = uniforms(batch.seeds, batch.lengths, DRAFT_STREAM + (offset << 8), size)
    return draw_without_replacement(law, count, noise.view_as(law))
