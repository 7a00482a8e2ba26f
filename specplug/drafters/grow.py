"""Growing a tree of its own for every row, from the draft's probabilities: what `dynamic` trees are filled by.

The most probable frontier is expanded, level by level, and of everything that was seen the most probable nodes are kept
(EAGLE-2, arXiv 2406.16858, sections 4.1 and 4.2; SpecInfer, arXiv 2305.09781, section 4). Which children are proposed follows from
probabilities and from no draw, so all are deterministic, also in sampled rows: with its own one-hot law a child is
accepted with the target's probability, and nothing that is kept depends on what was drawn.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from specplug.drafters.base import DraftRequest
from specplug.host import Batch, DraftRunner, Host
from specplug.ragged import ragged_trees
from specplug.tree import TreeBatch, TreeShape


def grow(host: Host, runner: DraftRunner, request: DraftRequest) -> TreeBatch:
    """A tree of `request.shape`'s size and at most its depth for every row, of `runner`'s most probable nodes."""
    batch, size, depth = request.batch, request.shape.size, request.shape.depth
    width = min(frontier_width(size, depth), runner.vocab_size)  # the root has no more children than that
    scores = _log_probabilities(host, batch, runner.begin(batch, _beam(width, depth)))  # [B, 1, V]
    pool = _Pool(batch.roots, min(size, max(2, width), scores.shape[-1]))
    frontier = pool.add(scores, torch.zeros_like(batch.roots)[:, None], width)
    ancestors = _extended(None, None, batch.num_rows, batch.roots.device)
    above = torch.zeros_like(frontier)  # in the order of forwards, where each frontier node's parent stands
    for level in range(1, depth):
        ancestors = _extended(ancestors, above, batch.num_rows, batch.roots.device)
        logits = runner.extend(pool.tokens_at(frontier), level, ancestors)
        first = 1 + (level - 1) * frontier.shape[1]
        chosen, parents = pool.add(_log_probabilities(host, batch, logits), frontier, width), frontier
        above = first + _place(pool.parents_at(chosen), parents)
        frontier = chosen
    return pool.best(size, request.explain)


def frontier_width(size: int, depth: int) -> int:
    """Nodes forwarded a level: as many as leave the draft within the `size + 1` places of the tree it proposes."""
    return max(1, size // max(1, depth - 1))


@lru_cache(maxsize=128)
def _beam(width: int, depth: int) -> TreeShape:
    """The forwards: the root, then `width` nodes a level. Only sizes and depths are read of it, but for its last level."""
    parents, above = [-1], [0]
    for _ in range(depth):
        below = [len(parents) + i for i in range(width)]
        parents += [above[min(i, len(above) - 1)] for i in range(width)]
        above = below
    return TreeShape(tuple(parents))


def _log_probabilities(host: Host, batch: Batch, logits: Tensor) -> Tensor:
    """[B, w, V] float32."""
    if batch.sampling:
        return host.draft_law(batch, logits).clamp(min=1e-30).log()
    return logits.float().log_softmax(-1)


def _extended(known: Tensor | None, above: Tensor | None, rows: int, device: torch.device) -> Tensor:
    """Ancestors [B, n + w, n + w] of the forwarded nodes, when w more hang below the nodes `above` [B, w]."""
    if known is None or above is None:
        return torch.ones((rows, 1, 1), dtype=torch.bool, device=device)
    count, more = known.shape[1], above.shape[1]
    inherited = known.gather(1, above[..., None].expand(-1, -1, count))
    own = torch.eye(more, dtype=torch.bool, device=device).expand(rows, -1, -1)
    upper = torch.cat([known, torch.zeros((rows, count, more), dtype=torch.bool, device=device)], 2)
    return torch.cat([upper, torch.cat([inherited, own], 2)], 1)


def _place(wanted: Tensor, listed: Tensor) -> Tensor:
    """Where each of `wanted` [B, w] stands in `listed` [B, v], which has it: [B, w]."""
    return (wanted[:, :, None] == listed[:, None]).int().argmax(2)


class _Pool:
    """Every node that was seen: its token, its parent (an earlier node; the root is 0) and the logarithm of its probability."""

    def __init__(self, roots: Tensor, branch: int) -> None:
        """`branch`: children seen of every forwarded node."""
        self.branch = branch
        self.tokens, self.parents = roots[:, None], torch.full_like(roots, -1)[:, None]
        self.scores = torch.zeros_like(roots, dtype=torch.float32)[:, None]

    def add(self, scores: Tensor, parents: Tensor, width: int) -> Tensor:
        """Children of `parents` [B, w], whose laws' logarithms are `scores` [B, w, V]; the `width` most probable: [B, width]."""
        best = scores.topk(self.branch, dim=-1)
        reach = (best.values + self.scores.gather(1, parents)[..., None]).flatten(1)
        first = self.tokens.shape[1]
        self.tokens = torch.cat([self.tokens, best.indices.flatten(1)], 1)
        self.parents = torch.cat([self.parents, parents.repeat_interleave(self.branch, 1)], 1)
        self.scores = torch.cat([self.scores, reach], 1)
        return first + reach.topk(width, dim=-1).indices

    def tokens_at(self, nodes: Tensor) -> Tensor:
        return self.tokens.gather(1, nodes)

    def parents_at(self, nodes: Tensor) -> Tensor:
        return self.parents.gather(1, nodes)

    def best(self, size: int, explain: bool) -> TreeBatch:
        """The `size` most probable nodes. A parent is no less probable than its child, and earlier where they are equal."""
        count = min(size, self.tokens.shape[1] - 1)
        order = self.scores.sort(dim=1, descending=True, stable=True).indices[:, : count + 1]
        kept = order.sort(dim=1).values
        parents = self.parents.gather(1, kept)
        places = torch.zeros_like(self.tokens).scatter(
            1, kept, torch.arange(count + 1, device=kept.device).expand_as(kept)
        )
        parents = torch.where(parents < 0, -1, places.gather(1, parents.clamp(min=0)))
        trees = ragged_trees(self.tokens.gather(1, kept), parents, width=min(self.branch, count))
        return replace(trees, confidence=self._confidence(kept)) if explain else trees

    def _confidence(self, nodes: Tensor) -> Tensor:
        """The probability of `nodes` [B, n] behind their parents: float32, NaN at the root."""
        parents = self.parents_at(nodes)
        own = self.scores.gather(1, nodes) - self.scores.gather(1, parents.clamp(min=0))
        return own.exp().where(parents >= 0, torch.nan)
