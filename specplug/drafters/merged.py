"""`merged`: the trees of several drafters, united into one (SpecInfer, arXiv 2305.09781, section 3).

Each part drafts for itself; the target verifies all at once, in several rounds of rejection where children come from different
laws (SpecInfer, section 4.3). What is proposed by several parts is verified once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from specplug.drafters.base import Drafter, DraftRequest
from specplug.drafters.shares import Proposed, Shares, order_of, sizes
from specplug.drafters.union import Offer, united
from specplug.errors import OptionError
from specplug.host import Batch
from specplug.kv_policies import KVPolicy
from specplug.needs import Need
from specplug.ragged import limited
from specplug.random import uniforms
from specplug.subtree import beginning
from specplug.tree import TreeBatch, TreeShape, roots_only

if TYPE_CHECKING:
    from specplug.round import Round

PARTS_STREAM = 3  # of random.py's streams: the seeds of the parts' own draws
WAITING = 4  # rounds that may be drafted before the first of them is observed


@dataclass
class Merged(Drafter):
    """`parts`: drafters, or their names with `+` between them; `model` and `kv_policy` go to those named that take them.

    The places of the tree are shared by how often each part's nodes were right when no part before it had the same. A part
    that drafts with a model is asked for its share, since what it drafts cannot be taken back; the others are asked for a whole
    tree, of which the best fill what is left. In sampled batches the shares stay as they are at first: what a row draws goes with
    its tree, and must not depend on what others have accepted.

    Parts with models come first, the others in the given order. What a model has read of its own nodes is not kept: it reads
    what was accepted with the next root.
    """

    parts: Any = "suffix+prompt_lookup"
    model: Any = None
    kv_policy: KVPolicy | None = None

    def __post_init__(self) -> None:
        named = isinstance(self.parts, str)
        parts = self._built(self.parts) if named else list(self.parts)
        for part in parts:
            if not isinstance(part, Drafter):
                raise OptionError(f"merged: a part must be a Drafter, got {part!r} of type {type(part).__name__}.")
        parts = [inner for part in parts for inner in part.parts]  # one that is merged itself gives its parts
        for part in parts:
            _check(part)
        if len(parts) < 2:
            raise OptionError(f"merged: parts={self.parts!r} must be two drafters or more.")
        if named and self.model is not None and not any(getattr(p, "model", None) is self.model for p in parts):
            raise OptionError(f"merged: a draft model is given, but no part of {self.parts!r} uses it; name 'model'.")
        self.parts = tuple(sorted(parts, key=lambda part: not part.drafts_with_model))
        self._shares = Shares(len(parts))
        self.checked = any(part.checked for part in parts)  # type: ignore[misc]
        self.drafts_with_model = any(part.drafts_with_model for part in parts)  # type: ignore[misc]

    def _built(self, names: str) -> list[Drafter]:
        from specplug.specification import build  # noqa: PLC0415  (the plugins it looks up are made of drafters)

        given = {"model": self.model, "kv_policy": self.kv_policy}
        given = {key: value for key, value in given.items() if value is not None}
        return [build("drafters", name.strip(), **given) for name in names.split("+")]

    @property
    def required(self) -> frozenset[Need]:
        return frozenset().union(*(part.required for part in self.parts))

    @property
    def budget(self) -> int | None:
        budgets = [part.budget for part in self.parts if part.drafts_with_model]
        return None if not budgets or None in budgets else max(budget for budget in budgets if budget is not None)

    @property
    def min_context(self) -> int:
        found: int = min(part.min_context for part in self.parts)
        return found

    @property
    def key(self) -> str:
        return f"{type(self).__name__}[{' + '.join(part.key for part in self.parts)}]"

    def shapes(self) -> tuple[TreeShape, ...]:
        return tuple(dict.fromkeys(shape for part in self.parts for shape in part.shapes()))

    def setup(self) -> None:
        self.parts = tuple(part.open(self.host) for part in self.parts)
        # by batch, since a round may be observed late: what the parts proposed
        self._drafted: deque[tuple[Batch, list[Proposed]]] = deque(maxlen=WAITING)

    def unread(self, batch: Batch) -> int:
        return sum(part.unread(batch) for part in self.parts)

    def draft(self, request: DraftRequest) -> TreeBatch:
        batch, shape = request.batch, request.shape
        if not shape.size:
            return roots_only(batch.roots)
        worth = self._shares.worth(learnt=not batch.sampling)
        shares = sizes(worth, shape.size)
        drafted = [self._ask(place, request, share) for place, share in enumerate(shares)]
        # what was drawn must stand before all that may be left out, or united with it
        order = sorted(range(len(drafted)), key=lambda place: drafted[place].laws is None)
        offers = [Offer(drafted[i], self._worth(i, drafted[i], worth)) for i in order]
        trees, fresh = united(batch.roots, offers, shape.size, shape.depth)
        if not batch.sampling:
            news = dict(zip(order, fresh, strict=True))
            self._drafted.append((batch, [Proposed(tree, news[place]) for place, tree in enumerate(drafted)]))
        return trees

    def _ask(self, place: int, request: DraftRequest, share: int) -> TreeBatch:
        """The tree of the part at `place`: of its share if it drafts with a model or draws, else of any size."""
        part: Drafter = self.parts[place]
        if part.drafts_with_model and not share:
            return roots_only(request.batch.roots)
        small = part.fitted(beginning(request.shape, share))
        whole = part.fitted(request.shape)
        batch = _with_draws_of(request.batch, place) if request.batch.sampling else request.batch
        trees = part.draft(
            replace(
                request,
                batch=batch,
                shape=small if part.drafts_with_model else whole,
                grown=request.grown and part.drafts_with_model,
                part=True,
            )
        )
        if trees.laws is not None and trees.num_nodes - 1 > share:
            trees = limited(trees, whole, [share] * batch.num_rows)
        return trees

    def _worth(self, place: int, trees: TreeBatch, worth: Tensor) -> Tensor | None:
        if trees.laws is not None or self.parts[place].drafts_with_model:
            return None
        return worth[place][(order_of(trees) - 1).clamp(min=0, max=worth.shape[1] - 1)]

    def observe(self, finished: Round) -> None:
        for part in self.parts:
            part.observe(finished)
        for batch, proposed in self._drafted:
            if batch is finished.batch:
                tokens = finished.verdict.tokens(finished.trees)
                counts = torch.as_tensor(finished.commit.num_new, device=tokens.device)
                self._shares.observe(proposed, tokens, counts)

    def forget(self, rows: Sequence[Hashable]) -> None:
        for part in self.parts:
            part.forget(rows)


def _check(part: Drafter) -> None:
    if Need.TARGET_PASS in part.required:
        raise OptionError(
            f"merged: {type(part).__name__} learns from the target's logits at its own tree, which others' nodes are not "
            "part of; use it alone."
        )
    if getattr(part, "model", part) is None and Need.MODEL_RUNNER in part.required:
        raise OptionError(
            f"merged: {type(part).__name__} has no model; pass draft_model=... (a loaded model or a path)."
        )


def _with_draws_of(batch: Batch, place: int) -> Batch:
    """`batch` with seeds of its own for the part at `place`: laws of different parts must not be drawn by the same numbers."""
    if place == 0:
        return batch
    numbers = uniforms(batch.seeds, torch.zeros_like(batch.seeds), PARTS_STREAM, place)[:, -1]
    return replace(batch, seeds=(numbers * 2.0**52).long())
