"""Sampling is reproducible."""

from __future__ import annotations

from dataclasses import replace

from specplug_conformance.check import Trial, check
from specplug_conformance.compare import faulty
from specplug_conformance.request import Request
from specplug_conformance.subject import Feature

KINDS = frozenset({"drafter", "kv_policy", "tree", "adapter"})


@check("seeds", "the same seed draws the same text again; other seeds draw others", KINDS)
def seeds(trial: Trial) -> None:
    trial.needs(Feature.SAMPLING)
    world = trial.world()
    request = Request(((1, 2, 3, 1, 2, 3), (4, 4, 5)), new_tokens=16, seeds=(3, 4))
    first, again = (world.speculated(request, trial.speculator(world)) for _ in range(2))
    if first != again:
        raise faulty(world, request, "the same seeds drew another text", first=first, again=again)
    others = [
        world.speculated(replace(request, seeds=(seed, seed + 1)), trial.speculator(world)) for seed in (50, 60, 70)
    ]
    if all(other == first for other in others):
        raise faulty(world, request, "four pairs of seeds drew the same text", text=first)
