"""What rounds take in one cell: medians of real rounds, as samples of the target, of each draft and of the rest.

A round's time is shared out so that the parts of a cost model add up to it: `overhead` is what a plain round takes besides
its forward, a draft's is a level's share of drafting, and the target's is all else, so also what more nodes cost in laws,
acceptance and moving keys and values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from specplug import TreeShape
from specplug.cost.base import Load
from specplug.cost.fitted import OVERHEAD, TARGET, Sample
from specplug.cost.scale import scale
from specplug.drafters import Drafter
from specplug.tree import ROOT_ONLY
from specplug_hf.calibration.clock import Clock
from specplug_hf.calibration.grid import tree_of
from specplug_hf.calibration.rounds import FEWEST, Rounds
from specplug_hf.calibration.stage import NOBODY, Stage

ROUNDS = 4  # timed in a row, behind one that is not
PASSES = 4  # over all jobs, while there is time


@dataclass(frozen=True, slots=True)
class Job:
    """Rounds of the drafter at `place` on the stage with `shape`."""

    place: int
    shape: TreeShape
    budget: int | None = None  # KV entries of a row that the drafter reads


def jobs(cast: Sequence[Drafter], nodes: Sequence[int]) -> list[Job]:
    """Plain decoding first. A draft model gets every number of nodes; the target, a full forward a level, two short chains."""
    sizes = sorted({count for count in nodes if count > 1})
    found = [Job(NOBODY, ROOT_ONLY)]
    for place, drafter in enumerate(cast, start=NOBODY + 1):
        if not drafter.drafts_with_model:
            continue
        budget = drafter.kv_policy.budget  # type: ignore[attr-defined]
        own = hasattr(drafter, "model")
        few = sizes if own else [count for count in sizes if count <= 3][:2] or sizes[:1]
        found += [Job(place, tree_of(count), budget) for count in few]
    return found


def measure(stage: Stage, todo: Sequence[Job], clock: Clock, pause: float) -> tuple[dict[Job, Rounds], int]:
    """Run all of `todo`, again and again until the clock is over or `pause` seconds have gone by: what each took, and how
    often all of them were run."""
    found: dict[Job, Rounds] = {}
    started = clock.spent
    for number in range(PASSES):
        for job in todo:
            for turn in range(1 + ROUNDS):
                finished = None if clock.over and found else stage.round(job.place, job.shape)
                if finished is None:
                    return found, number
                if turn:
                    found.setdefault(job, Rounds(job.shape.depth)).add(finished)
        if clock.spent - started > pause:
            return found, number + 1
    return found, PASSES


def samples(found: dict[Job, Rounds], rows: int, labels: Sequence[str]) -> list[Sample]:
    """What one cell's rounds say, once plain ones are among them. `labels`: of the arms, place by place."""
    known = {job: rounds for job, rounds in found.items() if len(rounds) >= FEWEST}
    plain = next((rounds for job, rounds in known.items() if job.place == NOBODY), None)
    if plain is None:
        return []
    own = median(plain.own)
    listed = [Sample(OVERHEAD, Load(rows, rows, 0), own)]
    for job, rounds in known.items():
        label = labels[job.place]
        work = scale(label, rows, job.shape, rows * round(median(rounds.contexts)), job.budget)
        listed.append(Sample(TARGET, work.target, max(1e-9, rounds.rest - own)))
        if job.shape.depth:
            listed.append(Sample(label, work.draft, median(rounds.steps)))
    return listed
