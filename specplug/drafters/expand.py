"""Filling a fixed tree shape with a drafting model, level by level: what `self` and `model` share.

Greedy rows: the children of a node are the draft's most probable tokens in order, deterministic. Sampled rows: they
are drawn from the draft's law without replacement (Sequoia, arXiv 2402.12374, section 3), and the law goes along.

A draft may stop below a token that it holds for improbable (Draft & Verify, arXiv 2309.08168; SWIFT, arXiv 2410.06916). The
token itself stays: dropping what was drawn would change the law of the output.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from specplug.drafters.base import DraftRequest
from specplug.drafters.grow import grow
from specplug.errors import OptionError
from specplug.host import Batch, DraftRunner, Host
from specplug.random import DRAFT_STREAM, draw_without_replacement, uniforms
from specplug.tree import TreeBatch, TreeShape, child_counts, fill_shape, shape_tensors


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


def check_stop(drafter: str, stop: float) -> None:
    """Raise `OptionError` if `stop` is no probability."""
    if not 0 <= stop <= 1:
        raise OptionError(f"{drafter}: stop={stop} must be a probability, from 0 (never) to 1.")


def expand(host: Host, runner: DraftRunner, request: DraftRequest, stop: float = 0.0) -> TreeBatch:
    """Fill `request.shape` for every row with the tokens of `runner`'s model.

    `stop`: a token to which the draft gave a lower probability gets no children, and a level that no row wants is not
    drafted, which waits for the device once a level; 0: never. Grown trees stop by themselves.
    """
    batch, shape = request.batch, request.shape
    if request.grown and shape.size:
        return grow(host, runner, request)
    tokens = [batch.roots[:, None]]
    laws, confidence = [], []
    ends = _Ends(stop, shape, batch) if stop else None
    noise_used = 0
    plans = level_plans(shape, batch.roots.device)
    logits = runner.begin(batch, shape)
    for level, plan in enumerate(plans):
        if level:
            above = (_lineage(request, level),) if request.part else ()
            logits = runner.extend(tokens[-1], level, *above)
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
        if request.explain or ends is not None:
            known = laws[-1] if batch.sampling else logits.float().softmax(-1)
            confidence.append(_picked(known.gather(-1, candidates), plan))
        if ends is not None and not ends.goes_on(confidence[-1], level + 1):
            shape = shape.cut(level + 1)
            break
    trees = fill_shape(
        shape, torch.cat(tokens, dim=1), torch.cat(laws, dim=1) if laws else None, None if ends is None else ends.valid
    )
    if not request.explain:
        return trees
    unknown = torch.full((batch.num_rows, 1), torch.nan, device=batch.roots.device)  # at the root
    return replace(trees, confidence=torch.cat([unknown, *confidence], dim=1))


def _lineage(request: DraftRequest, level: int) -> Tensor:
    """Who stands above whom down to `level`, [B, n, n]: for a runner that must not take these nodes for the verified ones."""
    stop = request.shape.levels[level][1]
    ancestors = shape_tensors(request.shape, request.batch.roots.device).ancestors[:stop, :stop]
    return ancestors.expand(request.batch.num_rows, -1, -1)


class _Ends:
    """Which nodes of the batch's trees still have children. A node is real if every token above it was probable enough."""

    def __init__(self, stop: float, shape: TreeShape, batch: Batch) -> None:
        self._stop, self._shape = stop, shape
        self._parents = shape_tensors(shape, batch.roots.device).parents
        self._open = torch.ones_like(batch.roots, dtype=torch.bool)[:, None]  # [B, nodes so far]
        self.valid = self._open  # [B, nodes so far]

    def goes_on(self, confidence: Tensor, level: int) -> bool:
        """Take in the nodes of `level`, of probability `confidence` [B, w]; whether any of them has children."""
        start, stop = self._shape.levels[level]
        real = self._open.index_select(1, self._parents[start:stop])
        self.valid = torch.cat([self.valid, real], dim=1)
        if level == self._shape.depth:
            return True
        wanted = real & (confidence >= self._stop)
        self._open = torch.cat([self._open, wanted], dim=1)
        return bool(wanted.any())


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
