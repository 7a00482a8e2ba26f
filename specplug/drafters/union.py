"""Several drafters' trees made one (SpecInfer, arXiv 2305.09781, section 3: merge-based token trees).

A node that was not drawn and repeats the path of an earlier part's node is united with it, also with one that was drawn: once a
drawn token has been refused, nothing is left of its probability, so that the same token behind it could never be accepted.
What was drawn is neither united with anything nor left out, since what is kept must not depend on what was drawn; and it
stands before all that was not, which may then be left out whatever was drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from specplug.drafters.padding import padded_trees
from specplug.tree import DETERMINISTIC, TreeBatch, roots_only

WHOLE = 2.0  # what nodes are worth that must stay; the root is worth more still


@dataclass(frozen=True, slots=True)
class Offer:
    """One part's proposal. `worth` [n]: of its nodes by column, at most 1; None: all of it must stay."""

    trees: TreeBatch
    worth: Tensor | None


@dataclass(slots=True)
class _Pool:
    """Every node of every part, in columns; those that were united with an earlier one are not real."""

    tokens: Tensor  # [B, T] int64
    parents: Tensor  # [B, T] int64
    real: Tensor  # [B, T] bool
    worth: Tensor  # [B, T] float32
    law_index: Tensor  # [B, T] int64
    confidence: Tensor  # [B, T] float32

    @classmethod
    def of(cls, roots: Tensor) -> _Pool:
        column = roots[:, None]
        return cls(
            column,
            torch.full_like(column, -1),
            torch.ones_like(column, dtype=torch.bool),
            torch.full_like(column, 2 * WHOLE, dtype=torch.float32),
            torch.full_like(column, DETERMINISTIC),
            torch.full_like(column, torch.nan, dtype=torch.float32),
        )

    def add(self, offer: Offer, depth: int, first_law: int) -> Tensor:
        """Take in a part's nodes, at most `depth` levels; returns which of them are new, [B, n] bool (the root is not)."""
        trees = offer.trees
        rows, count = trees.tokens.shape
        parents = trees.parents.expand(rows, -1)
        valid = torch.ones_like(trees.tokens, dtype=torch.bool) if trees.valid is None else trees.valid
        # what carries laws is taken over as it is
        levels = depth if trees.laws is None else 0
        found = self._same(trees.tokens, parents, valid, levels)
        own = self.tokens.shape[1] - 1 + torch.arange(count, device=found.device)
        columns = torch.where(found < 0, own, found)
        index = trees.law_index if trees.law_index is not None else torch.full_like(self.parents[:1, :1], DETERMINISTIC)
        index = index.expand(rows, count)
        worth = torch.full((count,), WHOLE) if offer.worth is None else offer.worth
        worth = worth.to(device=found.device, dtype=torch.float32).expand(rows, -1)
        confidence = torch.full_like(worth, torch.nan) if trees.confidence is None else trees.confidence
        fresh = valid & (found < 0)
        self.tokens = torch.cat([self.tokens, trees.tokens[:, 1:]], 1)
        self.parents = torch.cat([self.parents, columns.gather(1, parents[:, 1:])], 1)
        self.real = torch.cat([self.real, fresh[:, 1:]], 1)
        self.law_index = torch.cat([self.law_index, torch.where(index < 0, index, index + first_law)[:, 1:]], 1)
        self.confidence = torch.cat([self.confidence, confidence[:, 1:]], 1)
        # a node that several parts propose is worth what it is to the one that thinks most of it
        self.worth = torch.cat([self.worth, torch.zeros_like(worth[:, 1:])], 1)
        self.worth = self.worth.scatter_reduce(1, columns, worth.where(valid, 0.0), "amax")
        return fresh

    def _same(self, tokens: Tensor, parents: Tensor, valid: Tensor, depth: int) -> Tensor:
        """The column of the node with the same path, -1 = none: [B, n]. Nobody gets two nodes of one part."""
        at = torch.full_like(parents, -1)
        at[:, 0] = 0
        if self.tokens.shape[1] == 1 or tokens.shape[1] == 1:
            return at
        alike = (tokens[:, :, None] == self.tokens[:, None, :]) & valid[:, :, None] & self.real[:, None, :]
        alike[:, 0], alike[:, :, 0] = False, False
        for _ in range(depth):  # a level more is known every time
            above = at.gather(1, parents.clamp(min=0))[:, :, None]
            here = alike & (above >= 0) & (self.parents[:, None, :] == above)
            found = torch.where(here.any(2), here.int().argmax(2), -1)
            found[:, 0] = 0
            twice = (found[:, :, None] == found[:, None, :]).tril(-1).any(2)
            at = found.where(~twice, -1)
        return at


def united(roots: Tensor, offers: Sequence[Offer], size: int, depth: int) -> tuple[TreeBatch, list[Tensor]]:
    """One tree a row of at most `size` draft tokens, and which nodes of each offer no earlier one had: [B, n] bool each.

    Nodes keep the order in which the offers have them. `roots` [B] int64; `depth`: most levels of an offer. What must stay of all
    offers has to fit into `size`. Offers with laws come first, see above. Asks the device twice.
    """
    pool, fresh = _Pool.of(roots), []
    laws: list[Tensor] = []
    for offer in offers:
        fresh.append(pool.add(offer, depth, sum(law.shape[1] for law in laws)))
        if offer.trees.laws is not None:
            laws.append(offer.trees.laws)
    speaking = [offer.trees for offer in offers if offer.trees.num_nodes > 1]
    if not speaking:
        return roots_only(roots), fresh
    if len(speaking) == 1 and speaking[0].num_nodes - 1 <= size:
        return speaking[0], fresh
    return _best(pool, torch.cat(laws, 1) if laws else None, size, offers), fresh


def _best(pool: _Pool, laws: Tensor | None, size: int, offers: Sequence[Offer]) -> TreeBatch:
    """The `size` nodes of most worth, in their old order, with padding behind them."""
    # a parent is worth no less than its child and stands before it, so that it is kept if its child is
    worth = pool.worth.masked_fill(~pool.real, -1.0)
    count = min(size + 1, int(pool.real.sum(1).max()))
    kept = worth.argsort(dim=1, descending=True, stable=True)[:, :count]
    total = pool.tokens.shape[1]
    kept = torch.where(pool.real.gather(1, kept), kept, kept + total).sort(1).values  # padding last
    real, kept = kept < total, kept % total
    places = torch.zeros_like(pool.tokens)
    places.scatter_(1, kept, torch.arange(count, device=kept.device).expand_as(kept))
    parents = places.gather(1, pool.parents.gather(1, kept).clamp(min=0)).where(real, 0)
    parents[:, 0] = -1
    children = torch.zeros_like(kept).scatter_add(1, parents.clamp(min=0)[:, 1:], real[:, 1:].long())
    full, width = torch.stack([real.all().long(), children.max()]).tolist()
    index = None if laws is None else pool.law_index.gather(1, kept)
    trees = padded_trees(pool.tokens.gather(1, kept), parents, None if full else real, width, laws, index)
    if all(offer.trees.confidence is None for offer in offers):
        return trees
    return replace(trees, confidence=pool.confidence.gather(1, kept).where(real, torch.nan))
