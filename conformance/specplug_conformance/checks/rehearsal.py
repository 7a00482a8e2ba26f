"""Rehearsal: a drafter that may be tried on the past proposes from the text alone, up to where it then ended."""

from __future__ import annotations

from dataclasses import replace

import torch

from specplug import DraftRequest, Round, TreeBatch
from specplug.host import Batch
from specplug_conformance.check import Skipped, Trial, check
from specplug_conformance.compare import faulty
from specplug_conformance.request import Request
from specplug_conformance.scene import speculator
from specplug_conformance.search import Scene, scenes, search
from specplug_conformance.subject import State, Watch, World


@check(
    "rehearsal",
    "a drafter with `rehearses` proposes the same from the same text, whatever was asked of it in between",
    frozenset({"drafter"}),
)
def rehearsal(trial: Trial) -> None:
    world = trial.world()
    if not all(drafter.rehearses for drafter in trial.speculator(world).drafters):
        raise Skipped("the drafter does not say that it can be tried on the past")

    def test(scene: Scene) -> None:
        world.speculated(scene.request, speculator(trial, world, scene), _asker(world, scene.request))

    kept = Scene(Request(((1, 2, 3, 1, 2, 3), (4, 4), (9, 8, 7)), new_tokens=10), "chain:length=4")
    search(trial, scenes(world.vocab, rows=3), test, (kept,), share=0.3)


def _asker(world: World, request: Request) -> Watch:
    """After every round, with what it committed in place: asks for an earlier place, then for the round's own again."""

    def ask(finished: Round, _: State) -> None:
        drafter, shape, batch = finished.plan.arm.drafter, finished.plan.shape, _gone_on(finished)
        drafter.draft(DraftRequest(_as_strangers(batch, 1), shape))
        again = drafter.draft(DraftRequest(_as_strangers(batch, 0), shape))
        if (said := _proposed(again)) != (first := _proposed(finished.trees)):
            complaint = "asked again for the same text, the drafter proposes something else"
            raise faulty(world, request, complaint, first=first, again=said)

    return ask


def _gone_on(finished: Round) -> Batch:
    """The round's batch, its texts followed by what the round has committed."""
    batch = finished.batch
    assert batch.history is not None and batch.history_ends is not None
    new = finished.verdict.tokens(finished.trees)
    text = torch.cat([batch.history, torch.zeros_like(new)], dim=1)
    columns = batch.history_ends[:, None] + torch.arange(new.shape[1], device=new.device)
    return replace(batch, history=text.scatter(1, columns, new))


def _as_strangers(batch: Batch, ago: int) -> Batch:
    """The texts as they were `ago` tokens before the round, in rows that nobody has seen."""
    assert batch.history is not None and batch.history_ends is not None and batch.history_starts is not None
    ends = torch.maximum(batch.history_ends - ago, batch.history_starts + 1)
    return replace(
        batch,
        rows=tuple(("stranger", row) for row in batch.rows),
        roots=batch.history.gather(1, ends[:, None] - 1).squeeze(1),
        history_ends=ends,
    )


def _proposed(trees: TreeBatch) -> list[list[tuple[int, int]]]:
    """Of every row, parent and token of each node."""
    parents = trees.parents.expand(trees.num_rows, -1).tolist()
    real = torch.ones_like(trees.tokens) if trees.valid is None else trees.valid
    return [
        [(p, t) for p, t, kept in zip(*row, strict=True) if kept]
        for row in zip(parents, trees.tokens.tolist(), real.tolist(), strict=True)
    ]
