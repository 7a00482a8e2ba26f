"""What a row says does not depend on what else is in the batch, or on when it came."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hypothesis import strategies as st

from specplug import Speculator
from specplug_conformance.check import EVERY, Trial, check
from specplug_conformance.compare import faulty, same_tokens
from specplug_conformance.request import Request
from specplug_conformance.scene import speculator
from specplug_conformance.search import Scene, scenes, search
from specplug_conformance.subject import Feature, World

Rows = list[list[int]]


@check("batch", "a row alone, in a batch, in a permuted and in a padded batch says the same", EVERY)
def batch(trial: Trial) -> None:
    world = trial.world()
    sampled = Feature.SAMPLING in trial.subject.features and trial.case.kind != "controller"
    # what `auto` speculates goes by the clock, and a sampled row's draws go with its trees
    modes = [False, True] if sampled else [False]

    def test(choice: tuple[Scene, bool]) -> None:
        scene, sampling = choice
        if sampling:
            seeds = tuple(range(7, 7 + scene.request.num_rows))
            scene = replace(scene, request=replace(scene.request, seeds=seeds), always=True)
        _independent(trial, world, scene)

    ragged = Request(((1, 2, 3, 1, 2, 3), (4, 4), (9, 8, 7, 6, 5, 4, 3, 2)), new_tokens=10)
    kept = [(Scene(ragged, "sequoia:size=6,depth=3"), mode) for mode in modes]
    search(trial, st.tuples(scenes(world.vocab, rows=3), st.sampled_from(modes)), test, kept, share=0.6)


def _independent(trial: Trial, world: World, scene: Scene) -> None:
    request = scene.request
    together = _run(trial, world, scene, request)
    order = list(reversed(range(request.num_rows)))
    for what, rows, got in _arrangements(trial, world, scene, order):
        for place, row in enumerate(rows):
            if got[place] != together[row]:
                raise faulty(
                    world, request, f"row {row} says something else {what}", row=row, tree=scene.tree,
                    in_the_batch=together[row], otherwise=got[place],
                )  # fmt: skip


def _arrangements(trial: Trial, world: World, scene: Scene, order: list[int]) -> list[tuple[str, list[int], Rows]]:
    request = scene.request
    found = [("alone", [row], _run(trial, world, scene, _chosen(request, [row]))) for row in order]
    found.append(("in another order", order, _run(trial, world, scene, _chosen(request, order))))
    if Feature.PADDING in trial.subject.features:
        rows = list(range(request.num_rows))
        found.append(("with more padding", rows, _run(trial, world, scene, replace(request, padding=3))))
    return found


def _chosen(request: Request, rows: Sequence[int]) -> Request:
    seeds = None if request.seeds is None else tuple(request.seeds[row] for row in rows)
    return replace(request, prompts=tuple(request.prompts[row] for row in rows), seeds=seeds)


def _run(trial: Trial, world: World, scene: Scene, request: Request) -> Rows:
    used: Speculator = speculator(trial, world, replace(scene, request=request))
    return world.speculated(request, used)


@check("joins", "rows that enter later, leave early or are aborted change nothing for the others", EVERY)
def joins(trial: Trial) -> None:
    trial.needs(Feature.JOINS, Feature.LEAVES)
    world = trial.world()

    def test(choice: tuple[Scene, list[int], int]) -> None:
        scene, when, gone = choice
        request = scene.request
        rounds = tuple((when * request.num_rows)[: request.num_rows])
        aborted = gone % request.num_rows
        asked = replace(request, joins=rounds, leaves=((aborted, rounds[aborted] + 2),))
        ours = world.speculated(asked, speculator(trial, world, scene))
        plain = world.plain(request)
        wanted = [plain[row][: len(ours[row])] if row == aborted else plain[row] for row in range(request.num_rows)]
        same_tokens(trial, world, asked, ours, wanted)

    kept = (Scene(Request(((1, 2, 3), (4, 5), (6, 6, 6))), "sequoia:size=6,depth=3"), [0, 2, 1], 1)
    strategy = st.tuples(scenes(world.vocab), st.lists(st.integers(0, 4), min_size=1, max_size=4), st.integers(0, 3))
    search(trial, strategy, test, (kept,))
