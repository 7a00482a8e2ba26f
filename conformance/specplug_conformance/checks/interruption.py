"""What is left behind when something goes wrong in the middle: nothing."""

from __future__ import annotations

from typing import Any

from specplug import Batch, Drafter, DraftRequest, Need, Round, Speculator, TreeBatch
from specplug_conformance.check import EVERY, Trial, check
from specplug_conformance.compare import faulty, same_tokens
from specplug_conformance.request import Request
from specplug_conformance.scene import run_and_compare, speculator
from specplug_conformance.search import Scene


class TroubleError(Exception):
    """What the tests' own drafter raises in the middle."""


class Troubled(Drafter):
    """Drafts as `inner` does, and raises in its `at`-th round, having drafted."""

    checked = False

    def __init__(self, inner: Drafter, error: type[BaseException], at: int) -> None:
        self.inner, self.error, self.at = inner, error, at
        self.drafts_with_model = inner.drafts_with_model  # type: ignore[misc]

    @property
    def parts(self) -> tuple[Drafter, ...]:
        return self.inner.parts

    @property
    def required(self) -> frozenset[Need]:
        return self.inner.required

    def setup(self) -> None:
        self.inner, self.rounds = self.inner.open(self.host), 0

    def unread(self, batch: Batch) -> int:
        return self.inner.unread(batch)

    def draft(self, request: DraftRequest) -> TreeBatch:
        trees = self.inner.draft(request)
        self.rounds += 1
        if self.rounds >= self.at:
            raise self.error("in the middle")
        return trees

    def observe(self, finished: Round) -> None:
        self.inner.observe(finished)

    def forget(self, rows: Any) -> None:
        self.inner.forget(rows)


@check(
    "interruption",
    "an error or an interrupt in the middle leaves model, cache and settings as if nothing had run",
    EVERY,
)
def interruption(trial: Trial) -> None:
    world = trial.world()
    request = Request(((1, 2, 3, 1, 2, 3), (4, 4, 5)), new_tokens=18)
    scene, plain = Scene(request, "sequoia:size=6,depth=3"), world.plain(request)
    before = world.fingerprint()
    for error, at in ((TroubleError, 1), (TroubleError, 3), (KeyboardInterrupt, 2)):
        used = speculator(trial, world, scene)
        broken = Speculator(
            drafter=Troubled(used.drafters[0], error, at), tree=scene.tree, controller="fixed", seed=used.seed
        )
        try:
            world.speculated(request, broken)
        except error:
            pass
        else:
            raise faulty(world, request, f"a {error.__name__} raised by the drafter in round {at} was swallowed")
        if world.fingerprint() != before:
            raise faulty(world, request, f"a {error.__name__} in round {at} left something changed")
        same_tokens(trial, world, request, world.plain(request), plain)
        run_and_compare(trial, world, scene)
