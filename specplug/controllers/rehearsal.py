"""Rehearsal: a drafter that proposes from the written text alone is tried on text that is already written.

What a lookup would have proposed a few tokens ago is compared with what was written since: no verify, nothing lost. Greedy
tokens agree exactly where the target would have accepted; a sampled token agrees with a proposed one as often as the target
accepts it. So a text that begins to repeat itself is noticed while another drafter, or none, is at work.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter

import torch
from torch import Tensor

from specplug.acceptance import Acceptance
from specplug.controllers.base import Arm
from specplug.controllers.thinking import Thinking
from specplug.drafters.base import DraftRequest
from specplug.hindsight import Hindsight
from specplug.host import Batch
from specplug.outcome import Outcome, ranks_of
from specplug.tree import TreeBatch
from specplug.verify import Verdict, verify_greedy

SPAN = 8  # tokens that a row must have written since the last rehearsal
PLACES = 4  # most places in what was written since that it starts from
SHARE = 0.03  # of the time that rehearsals may take
COPIES = 8  # rows that the texts are repeated to for that, where there are fewer


Acceptances = Callable[[Arm, bool], Acceptance]  # what was seen of an arm, by whether sampled
Rehearsed = tuple[Arm, bool]  # an arm, and whether it did better than was believed of it


@dataclass(frozen=True, slots=True)
class _Scene:
    """One rehearsal: the batch's rows, once for every place."""

    arm: Arm
    rows: tuple[Hashable, ...]
    sampling: bool
    ago: list[int]  # by place and row, tokens that the text went on for
    read: Callable[[], Hindsight]
    waits: bool  # `read` does, for the device


class Rehearsal:
    """`plan` proposes for the past now and then, and `observe` reads what became of it where that is still on its way: nobody waits
    for the device.

    `time`: what may be spent on that, a `SHARE` of the time that rounds take.
    """

    def __init__(self, arms: Sequence[Arm], time: Thinking) -> None:
        self._time = time
        self._written = {id(arm): Counter[Hashable]() for arm in arms if arm.drafter.rehearses}
        self._arms = [arm for arm in arms if arm.drafter.rehearses]
        self._due: list[Arm] = []  # some row has written enough since each of these was tried
        self._scenes: list[_Scene] = []

    def plan(self, batch: Batch, acceptance: Acceptances) -> list[Rehearsed]:
        """Rehearse what others have written enough for; returns what is known of it by now."""
        if not self._due or batch.history is None or not self._time.affords:
            return []
        for arm in self._due:
            written = self._written[id(arm)]
            counts = [written[row] for row in batch.rows]
            if max(counts) >= SPAN:
                written.clear()
                begun = perf_counter()
                self._scenes.append(_scene(arm, batch, counts))
                self._time.spend(perf_counter() - begun)
        self._due = []
        known = [scene for scene in self._scenes if not scene.waits]
        self._scenes = [scene for scene in self._scenes if scene.waits]
        return _all_read(known, acceptance)

    @property
    def begun(self) -> bool:
        """Whether there is one whose end has not been read."""
        return bool(self._scenes)

    def waits(self, arm: Arm, batch: Batch) -> int | None:
        """Tokens that some row may still write with `arm` before it has to be seen whether another one is to be rehearsed; None: none
        ever is."""
        others = [self._written[id(other)] for other in self._arms if other is not arm]
        if not others or batch.history is None:
            return None
        if not self._time.affords:
            return SPAN
        return SPAN - max(max(written.values(), default=0) for written in others)

    def observe(self, outcome: Outcome, acceptance: Acceptances) -> list[Rehearsed]:
        """Count what the round wrote, read the rehearsals before it that had to wait for the device; returns them."""
        self._time.earn(outcome.seconds, SHARE)
        for arm in self._arms:
            written = self._written[id(arm)]
            if arm is outcome.plan.arm and outcome.plan.shape.size:
                written.clear()  # it was there itself
                continue
            for row, count in zip(outcome.rows, outcome.counts, strict=True):
                written[row] += count
            if max(written.values()) >= SPAN and arm not in self._due:
                self._due.append(arm)
        scenes, self._scenes = self._scenes, []
        return _all_read(scenes, acceptance)

    def forget(self, rows: Sequence[Hashable]) -> None:
        for written in self._written.values():
            for row in rows:
                written.pop(row, None)


def _all_read(scenes: Sequence[_Scene], acceptance: Acceptances) -> list[Rehearsed]:
    return [(scene.arm, _read(scene, acceptance(scene.arm, scene.sampling))) for scene in scenes]


def _read(scene: _Scene, seen: Acceptance) -> bool:
    """What became of `scene`; whether it was better than what was `seen` before."""
    believed = seen.pooled * seen.proposing
    seen.rehearsed(scene.rows, scene.arm.shape, scene.ago, scene.read())
    return seen.pooled * seen.proposing > believed


def _scene(arm: Arm, batch: Batch, written: Sequence[int]) -> _Scene:
    """`arm` proposes at some places of what each row has `written`."""
    places = max(1, min(PLACES, COPIES // batch.num_rows))
    ago = [-(-count * part // places) for part in range(places, 0, -1) for count in written]
    at_once = arm.drafter.hindsight(batch, ago, arm.shape)
    read = _drafted(arm, batch, ago) if at_once is None else lambda: at_once
    return _Scene(arm, batch.rows, batch.sampling, ago, read, waits=at_once is None)


def _drafted(arm: Arm, batch: Batch, known: Sequence[int]) -> Callable[[], Hindsight]:
    """`arm` drafts for the past, on the device."""
    past = _past(batch, known)
    trees = arm.drafter.draft(DraftRequest(past, arm.shape))
    assert past.history is not None and past.history_ends is not None
    columns = (past.history_ends[:, None] + trees.depths).clamp(max=past.history.shape[1] - 1)
    return partial(_held_against, trees, verify_greedy(trees, past.history.gather(1, columns)))


def _held_against(trees: TreeBatch, verdict: Verdict) -> Hindsight:
    """What became of `trees`; waits for the device."""
    valid = trees.valid
    proposed = [trees.num_nodes > 1] * trees.num_rows if valid is None else valid[:, 1:].any(1).tolist()
    return Hindsight(verdict.accepted, proposed, ranks_of(trees, verdict, grown=False))


def _past(batch: Batch, back: Sequence[int]) -> Batch:
    """The rows of `batch`, again and again, each as it was `back` tokens ago."""
    assert batch.history is not None and batch.history_ends is not None and batch.history_starts is not None
    times = len(back) // batch.num_rows

    def again(of_rows: Tensor) -> Tensor:
        return of_rows.expand(times, *of_rows.shape).flatten(0, 1)  # a single row is not copied

    ago = torch.tensor(back, device=batch.history.device)
    history, starts = again(batch.history), again(batch.history_starts)
    ends = torch.maximum(again(batch.history_ends) - ago, starts + 1)
    return replace(
        batch,
        rows=batch.rows * times,
        roots=history.gather(1, ends[:, None] - 1).squeeze(1),
        lengths=again(batch.lengths) - ago,
        seeds=again(batch.seeds),
        history=history,
        history_ends=ends,
        history_starts=starts,
    )
