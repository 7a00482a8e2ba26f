"""Rehearsal: a drafter that may be tried on the past proposes from the text alone, up to where it then ended.

What it says of itself in hindsight is what drafting then would have come to.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from specplug import Drafter, DraftRequest, Round, TreeBatch
from specplug.host import Batch
from specplug_conformance.check import Skipped, Trial, check
from specplug_conformance.compare import faulty
from specplug_conformance.request import Request
from specplug_conformance.scene import speculator
from specplug_conformance.search import Scene, scenes, search
from specplug_conformance.subject import State, Watch, World

Node = tuple[int, int, bool]


@check(
    "rehearsal",
    "a drafter with `rehearses` proposes the same from the same text, whatever was asked of it in between, and in hindsight "
    "says of its proposals what becomes of them",
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
        if (told := _told(drafter, finished)) is not None and told != (real := _come_to(drafter, finished)):
            complaint = "in hindsight the drafter says something else of its proposals than what becomes of them"
            raise faulty(world, request, complaint, real=real, said=told)

    return ask


def _told(drafter: Drafter, finished: Round) -> list[tuple[int, bool]] | None:
    """What it says, behind the round, of having drafted before it, by row: tokens taken of it, and whether it proposed any."""
    counts, shape, ends = finished.commit.counts, finished.plan.shape, finished.batch.history_ends
    assert ends is not None
    after = replace(_gone_on(finished), history_ends=ends + torch.tensor(counts, device=ends.device))
    told = drafter.hindsight(_as_strangers(after, 0), counts, shape)
    if told is None:
        return None
    known = zip(told.taken, counts, told.proposed, strict=True)
    return [(min(taken, count), proposed) for taken, count, proposed in known]


def _come_to(drafter: Drafter, finished: Round) -> list[tuple[int, bool]]:
    """The same, by drafting."""
    before = _as_strangers(_gone_on(finished), 0)
    trees = _nodes(drafter.draft(DraftRequest(before, finished.plan.shape)))
    new = finished.verdict.tokens(finished.trees).tolist()
    return [
        (_depth_of(nodes, tokens[:count]), any(kept for _, _, kept in nodes[1:]))
        for nodes, tokens, count in zip(trees, new, finished.commit.counts, strict=True)
    ]


def _depth_of(nodes: list[Node], text: list[int]) -> int:
    """How many tokens of `text` there is a path for."""
    node = 0
    for depth, token in enumerate(text):
        below = [place for place, found in enumerate(nodes) if place and found == (node, token, True)]
        if not below:
            return depth
        node = below[0]
    return len(text)


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


def _proposed(trees: TreeBatch) -> list[list[Node]]:
    """Of every row, the nodes that are no padding."""
    return [[node for node in nodes if node[2]] for nodes in _nodes(trees)]


def _nodes(trees: TreeBatch) -> list[list[Node]]:
    """Of every row, parent and token of each node, and whether it is no padding."""
    parents = trees.parents.expand(trees.num_rows, -1).tolist()
    real = torch.ones_like(trees.tokens, dtype=torch.bool) if trees.valid is None else trees.valid
    return [list(zip(*row, strict=True)) for row in zip(parents, trees.tokens.tolist(), real.tolist(), strict=True)]
