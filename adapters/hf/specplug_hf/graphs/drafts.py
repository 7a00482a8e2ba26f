"""One drafter's drafts over a window, recorded: all levels of a tree, sampling included."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from specplug import TreeBatch
from specplug.drafters import Drafter, ModelDraft, SelfDraft
from specplug.drafters.base import DraftRequest
from specplug_hf.paged.store import PagedStore
from specplug_hf.runners import ModelRunner, SelfRunner

# what `function(*inputs)` returns, which reads and writes the store, by a replay; None: run it eagerly (rounds.py)
Run = Callable[[PagedStore, Hashable, tuple[Tensor, ...], Callable[..., Any]], Any | None]


class RecordedDraft:
    """Takes the place of a working copy's `draft`, which it calls, eagerly or to be recorded."""

    def __init__(self, drafter: Any, run: Run) -> None:
        """`drafter`: one that `why_eager_draft` has nothing against."""
        self._draft, self._key, self._run = drafter.draft, drafter.key, run
        self._runner: ModelRunner | SelfRunner = drafter._runner

    def __call__(self, request: DraftRequest) -> TreeBatch:
        """What the drafter proposes; see `Drafter.draft`."""
        batch, runner = request.batch, self._runner
        own = runner.inputs(request) if request.shape.size else None
        if own is None:
            return self._draft(request)

        def function(roots: Tensor, lengths: Tensor, seeds: Tensor, *own: Tensor) -> tuple[TreeBatch, Any]:
            with runner.recorded(*own):
                trees = self._draft(replace(request, batch=replace(batch, roots=roots, lengths=lengths, seeds=seeds)))
            return trees, runner.drafted()

        kind = ("draft", self._key, request.shape, request.grown, request.explain, request.part, batch.sampling)
        assert isinstance(runner.store, PagedStore)
        result = self._run(runner.store, kind, (batch.roots, batch.lengths, batch.seeds, *own), function)
        if result is None:
            return self._draft(request)
        trees, drafted = result
        runner.replayed(drafted)
        # a round's trees are looked at when the next one's have been drafted
        return replace(trees, tokens=trees.tokens.clone())


def why_eager_draft(drafter: Drafter, device: torch.device) -> str | None:
    """Why drafts of the working copy `drafter` are not recorded on `device`, as a clause; None if they are."""
    if not isinstance(drafter, SelfDraft | ModelDraft):
        return "only a model's and the whole target's are recorded"
    runner: Any = drafter._runner
    obstacles = {
        "its KV policy reads the whole context, which grows": drafter.budget is None,
        "its KV policy looks at the cache, or reads it turned": bool(drafter.kv_policy.needs),
        "its cache is not paged": not runner.selects_pages,
        "it stops below improbable tokens, and waits for the device to see them": bool(getattr(drafter, "stop", 0)),
        "its layers are on other devices": runner.devices != {device},
    }
    return next((cause for cause, true in obstacles.items() if true), None)
