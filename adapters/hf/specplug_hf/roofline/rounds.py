"""Rounds of ours over a context that is in the cache: their parts, each waited for, or whole rounds as they really run."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter

from specplug import TreeShape
from specplug.drafters import Drafter
from specplug.tree import ROOT_ONLY
from specplug_hf.calibration.clock import Clock
from specplug_hf.calibration.rounds import FEWEST, Rounds
from specplug_hf.calibration.stage import NOBODY, Stage, perform
from specplug_hf.commands.models import Models
from specplug_hf.roofline.prompts import CachedPrompt

WARM = 8  # rounds that are not timed: what is built, or recorded as a graph after a few rounds, is there by then
ROUNDS = 12  # timed
ROOM = 40  # new tokens a row: with the largest tree within the slots that a cache starts with, so that none is ever doubled


@dataclass(frozen=True, slots=True)
class Cast:
    """Who runs: the model, who drafts with it, by which attention kernel."""

    models: Models
    drafter: Drafter
    kernel: str


def timed(
    cast: Cast, prompt: CachedPrompt, shape: TreeShape, clock: Clock, parts: bool, rounds: int = ROUNDS
) -> Rounds:
    """Up to `rounds` rounds with `shape` behind `prompt`; `parts`: the device is waited for behind draft and verify."""
    place = NOBODY if shape == ROOT_ONLY else NOBODY + 1
    found = Rounds(shape.depth)

    def play(stage: Stage) -> None:
        turn = 0
        while len(found) < rounds and not (clock.over and len(found) >= FEWEST):
            start = perf_counter()
            finished = stage.round(place, shape)
            if finished is None:
                return
            turn += 1
            if turn > WARM:
                found.add(finished, perf_counter() - start)

    perform(cast.models, prompt, [cast.drafter], ROOM, play, kernel=cast.kernel, waits=parts)  # type: ignore[arg-type]
    return found
