"""Greedy generation says token for token what plain generation says."""

from __future__ import annotations

from specplug_conformance.check import EVERY, Trial, check
from specplug_conformance.request import Request
from specplug_conformance.scene import run_and_compare
from specplug_conformance.search import Scene, scenes, search

# Kept examples: text that repeats itself, and a draft that comes back after rounds without it.
LOOP = Scene(Request(((1, 2, 3, 1, 2, 3), (4, 4)), new_tokens=9), "sequoia:size=6,depth=3")
LATE = Scene(Request(((5, 6, 7), (1, 2, 3, 4, 5, 6, 7), (2, 2)), new_tokens=14), "chain:length=4", always=False)


@check("greedy", "greedy output equals plain generation's, token for token, in float64", EVERY)
def greedy(trial: Trial) -> None:
    _search(trial, "float64")


@check("greedy-fp32", "the same in float32, where a tie of the two best scores is reported and no fault", EVERY)
def greedy_fp32(trial: Trial) -> None:
    _search(trial, "float32")


def _search(trial: Trial, dtype: str) -> None:
    world = trial.world(dtype=dtype)

    def test(scene: Scene) -> None:
        run_and_compare(trial, world, scene)

    search(trial, scenes(world.vocab), test, (LOOP, LATE))
