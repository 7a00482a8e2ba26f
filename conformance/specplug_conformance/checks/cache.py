"""The cache: after every round it holds what a fresh prefill of the committed tokens would put there."""

from __future__ import annotations

from specplug import Round
from specplug_conformance.check import EVERY, Trial, check
from specplug_conformance.compare import faulty
from specplug_conformance.request import Request
from specplug_conformance.scene import run_and_compare
from specplug_conformance.search import Scene, scenes, search
from specplug_conformance.subject import Feature, State, Watch, World

TOLERANCES = {"float64": 1e-9, "float32": 1e-4}  # of the largest entry


@check(
    "cache", "after every round each row's cache equals a fresh prefill of its committed tokens, to the length", EVERY
)
def cache(trial: Trial) -> None:
    trial.needs(Feature.CACHE)
    world = trial.world()

    def test(scene: Scene) -> None:
        run_and_compare(trial, world, scene, _inspector(world, scene.request))

    kept = Scene(Request(((1, 2, 3, 1, 2, 3), (4, 4), (9, 8, 7)), new_tokens=10), "sequoia:size=12,depth=5")
    search(trial, scenes(world.vocab, rows=3), test, (kept,), share=0.6)


def _inspector(world: World, request: Request) -> Watch:
    def inspect(_: Round, state: State) -> None:
        for row, tokens in state.committed().items():
            wanted = world.fresh(tokens[:-1])
            for part, (ours, fresh) in enumerate(zip(state.cached(row), wanted, strict=True)):
                if ours.shape != fresh.shape:
                    raise faulty(
                        world, request, f"the cache of row {row} has {len(ours)} entries, {len(fresh)} are committed",
                        row=row, tokens=tokens,
                    )  # fmt: skip
                tolerance = TOLERANCES[world.dtype] * fresh.abs().max().clamp(min=1)
                wrong = ((ours - fresh).abs() > tolerance).flatten(1).any(1)
                if bool(wrong.any()):
                    raise faulty(
                        world, request, f"the cache of row {row} is not what a fresh prefill gives", row=row,
                        part=part, position=int(wrong.nonzero()[0]), tokens=tokens,
                    )  # fmt: skip

    return inspect
