"""Rounds of ours over a context that is in the cache: their parts, each waited for, or whole rounds as they really run."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median
from time import perf_counter

from specplug import Round, TreeShape
from specplug.drafters import Drafter
from specplug.tree import ROOT_ONLY
from specplug_hf.calibration.clock import Clock
from specplug_hf.calibration.stage import NOBODY, Stage, perform
from specplug_hf.commands.models import Models
from specplug_hf.roofline.prompts import CachedPrompt

WARM = 8  # rounds that are not timed: what is built, or recorded as a graph after a few rounds, is there by then
ROUNDS = 12  # timed
FEWEST = 2  # with less nothing is said
ROOM = 40  # new tokens a row: with the largest tree within the slots that a cache starts with, so that none is ever doubled


@dataclass(slots=True)
class Rounds:
    """Timed rounds of one shape, in seconds. `own`: neither draft nor forward; `whole`: from one round's end to the next."""

    depth: int
    draft: list[float] = field(default_factory=list)
    verify: list[float] = field(default_factory=list)
    own: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.whole)

    def add(self, finished: Round, whole: float) -> None:
        """One more round."""
        seconds = finished.seconds
        self.draft.append(seconds.draft)
        self.verify.append(seconds.verify)
        self.own.append(seconds.total - seconds.draft - seconds.verify)
        self.whole.append(whole)

    @property
    def steps(self) -> list[float]:
        """A draft's forward in each round."""
        return [seconds / self.depth for seconds in self.draft] if self.depth else []

    @property
    def rest(self) -> float:
        """The median of all but drafting."""
        return median(verify + own for verify, own in zip(self.verify, self.own, strict=True))


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
