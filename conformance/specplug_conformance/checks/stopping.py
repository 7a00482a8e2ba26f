"""Generation ends where plain generation ends, also inside a block of accepted tokens."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from specplug_conformance.check import EVERY, Trial, check
from specplug_conformance.request import Request
from specplug_conformance.scene import run_and_compare
from specplug_conformance.search import Scene, scenes, search
from specplug_conformance.subject import Feature


@check("stopping", "end tokens and the length limit stop each row at the token at which plain generation stops", EVERY)
def stopping(trial: Trial) -> None:
    trial.needs(Feature.END_TOKENS)
    world = trial.world()

    def test(choice: tuple[Scene, int]) -> None:
        scene, which = choice
        free = world.plain(scene.request)[0]
        ending = (free[which % len(free)],)  # a token that surely comes
        run_and_compare(trial, world, replace(scene, request=replace(scene.request, end_tokens=ending)))

    early = Scene(Request(((1, 2, 3, 1, 2, 3), (7, 8))), "chain:length=4")
    search(trial, st.tuples(scenes(world.vocab), st.integers(0, 13)), test, ((early, 1), (early, 5)))
