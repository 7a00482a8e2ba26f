"""A finished round as plain values."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from specplug.trace.records import Node, RoundRecord, RowRound
from specplug.tree import DETERMINISTIC, TreeBatch

if TYPE_CHECKING:
    from specplug.round import Round

ALTERNATIVES = 3  # of the target's most probable tokens that are kept for every node of the path


def reduced(finished: Round) -> RoundRecord:
    """`finished`, of whose tensors nothing is kept; waits for the device."""
    plan, predicted, batch = finished.plan, finished.plan.predicted, finished.batch
    facts = _Facts(finished)
    return RoundRecord(
        arm=plan.arm.label,
        has_draft=plan.arm.drafter.drafts_with_model,
        size=plan.shape.size,
        depth=plan.shape.depth,
        reason="" if predicted is None else predicted.reason,
        predicted_tokens=None if predicted is None else predicted.tokens,
        predicted_seconds=None if predicted is None else predicted.seconds,
        seconds=asdict(finished.seconds),
        sampled=finished.targets.probs is not None,
        context=batch.context,
        rows={row: facts.row(place) for place, row in enumerate(batch.rows)},
    )


class _Facts:
    """Everything that is read from the device, for all rows at once. N nodes, P places on a path."""

    def __init__(self, finished: Round) -> None:
        trees, verdict = finished.trees, finished.verdict
        self.parents = trees.parents.expand(trees.num_rows, -1).tolist()
        self.tokens = trees.tokens.tolist()
        self.valid = None if trees.valid is None else trees.valid.tolist()
        self.paths, self.accepted = verdict.path.tolist(), verdict.accepted
        self.new, self.kept = verdict.tokens(trees).tolist(), finished.commit.counts
        self.draft = _draft_probabilities(trees)
        self._read_target(finished)

    def _read_target(self, finished: Round) -> None:
        law = _target_law(finished)
        rows = torch.arange(len(law), device=law.device)
        parents = finished.trees.parents.expand(len(law), -1).clamp(min=0).to(law.device)
        path = finished.verdict.path.to(law.device)
        # a padding node may hold anything
        tokens = finished.trees.tokens.to(law.device).clamp(0, law.shape[-1] - 1)
        self.target = law[rows[:, None], parents, tokens].tolist()
        best = law[rows[:, None], path].topk(min(ALTERNATIVES, law.shape[-1]))
        self.best = [
            [list(zip(*found, strict=True)) for found in zip(*row, strict=True)]
            for row in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]
        last = path.gather(1, finished.verdict.num_accepted.to(law.device)[:, None]).squeeze(1)
        self.bonus = law[rows, last, finished.verdict.bonus.to(law.device)].tolist()

    def row(self, b: int) -> RowRound:
        """What the round was for the row at place `b`."""
        kept, accepted = self.kept[b], min(self.accepted[b], self.kept[b])
        taken = set(self.paths[b][1 : accepted + 1])
        places: dict[int, int] = {}  # of the nodes that are no padding
        nodes: list[Node] = []
        for node, parent in enumerate(self.parents[b]):
            if node and (parent not in places or (self.valid is not None and not self.valid[b][node])):
                continue
            places[node] = len(nodes)
            nodes.append(self._node(b, node, places[parent] if node else -1, node in taken))
        return RowRound(
            nodes=tuple(nodes),
            tokens=tuple(self.new[b][:kept]),
            path=tuple(places[node] for node in self.paths[b][:kept]),
            alternatives=tuple(tuple(found) for found in self.best[b][:kept]),
            bonus=self.bonus[b] if kept > self.accepted[b] else None,
            cut=self.accepted[b] + 1 - kept,
        )

    def _node(self, b: int, node: int, parent: int, accepted: bool) -> Node:
        token = self.tokens[b][node]
        if not node:
            return Node(token, parent, accepted)
        draft = None if self.draft is None else self.draft[b][node]
        if draft is not None and math.isnan(draft):
            draft = None
        return Node(token, parent, accepted, draft, self.target[b][node])


def _target_law(finished: Round) -> Tensor:
    """[B, N, V] float32."""
    if finished.targets.probs is not None:
        return finished.targets.probs
    if finished.logits is None:
        raise RuntimeError("A greedy round can be recorded only if it was run while recording: its logits are gone.")
    return finished.logits.float().softmax(-1)


def _draft_probabilities(trees: TreeBatch) -> list[list[float]] | None:
    """By row and node, NaN where unknown; None if the drafter told nothing."""
    if trees.confidence is not None:
        told: list[list[float]] = trees.confidence.tolist()
        return told
    if trees.laws is None or trees.law_index is None:
        return None
    rows = torch.arange(trees.num_rows, device=trees.tokens.device)[:, None]
    index = trees.law_index.expand(trees.num_rows, -1)
    drawn = trees.laws[rows, index.clamp(min=0), trees.tokens.clamp(0, trees.laws.shape[-1] - 1)]
    found: list[list[float]] = drawn.where(index != DETERMINISTIC, math.nan).tolist()
    return found
