"""Putting a plugin into a scene: the Speculator for it, and the comparison with plain generation."""

from __future__ import annotations

from typing import Any

from specplug import Arm, Batch, Controller, Plan, Speculator
from specplug.controllers.base import planned
from specplug_conformance.check import Trial
from specplug_conformance.compare import same_tokens
from specplug_conformance.oracle import Oracle
from specplug_conformance.search import Scene
from specplug_conformance.subject import Watch, World


class Sometimes(Controller):
    """Speculates in some rounds only, by the tokens in the cache: drafters must catch up."""

    needs_baseline = True
    arms: tuple[Arm, ...]

    def plan(self, batch: Batch) -> Plan:
        return planned(self.arms[0] if batch.context % 3 == 0 else self.arms[-1], batch)


def speculator(trial: Trial, world: World, scene: Scene, **more: Any) -> Speculator:
    """The plugin at work in `scene`: its own part is never replaced."""
    settings: dict[str, Any] = {}
    if trial.case.kind != "controller":
        settings["controller"] = "fixed" if scene.always else Sometimes()
        if trial.case.kind != "tree":
            settings["tree"] = scene.tree
    return trial.speculator(world, **(settings | more))


def run_and_compare(trial: Trial, world: World, scene: Scene, watch: Watch | None = None) -> Speculator:
    """Generate plain and speculated; raise `Failure` where they differ. Returns the Speculator, for its statistics.

    An adapter is also given a drafter that knows the answer, so that whole trees are accepted.
    """
    plain = world.plain(scene.request)
    used = speculator(trial, world, scene)
    same_tokens(trial, world, scene.request, world.speculated(scene.request, used, watch), plain)
    if trial.case.kind == "adapter":
        texts = [[*prompt, *text] for prompt, text in zip(scene.request.prompts, plain, strict=True)]
        knowing = Speculator(drafter=Oracle(texts), tree=scene.tree, controller="fixed")
        same_tokens(trial, world, scene.request, world.speculated(scene.request, knowing, watch), plain)
    return used
