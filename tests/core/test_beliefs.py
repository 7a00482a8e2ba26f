"""Beliefs: what was seen of an arm, and of arms that draft alike over a cache of another size."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from specplug.acceptance import Acceptance
from specplug.controllers import Arm
from specplug.controllers.beliefs import MOST, SHARED, Beliefs
from specplug.drafters import NoDraft, PromptLookup, SelfDraft
from specplug.kv_policies import Streaming
from specplug.trees import Chain
from tests.core.test_controllers import World, mean_speed

SMALL, LARGE = (Arm(f"self {window}", SelfDraft(Streaming(4, window)), Chain(3).build()) for window in (60, 252))
LOOKUP = Arm("lookup", PromptLookup(), Chain(3).build())


def seen(tried, taken):
    made = Acceptance()
    made.tried[0], made.taken[0] = tried, taken
    return made


def test_kin_speaks_for_an_arm_that_nothing_was_seen_of():
    beliefs = Beliefs({("self 60", False): seen(40.0, 0.0)}, [SMALL, LARGE, LOOKUP])
    assert beliefs.trials(SMALL, False) == 40
    assert beliefs.trials(LARGE, False) == MOST
    assert beliefs.of(LARGE, False).samples == 0
    assert beliefs.of(LARGE, False).first()[0] < 0.1
    assert beliefs.trials(LOOKUP, False) == 0, "another way of drafting"
    assert beliefs.of(LOOKUP, False).first()[0] == pytest.approx(0.6)
    assert beliefs.trials(LARGE, True) == 0, "another law"


def test_what_was_seen_of_itself_counts_for_more():
    known = {("self 60", False): seen(40.0, 0.0), ("self 252", False): seen(40.0, 40.0)}
    assert Beliefs(known, [SMALL, LARGE]).of(LARGE, False).first()[0] > 0.9


@dataclass
class Budgets(World):
    """The target drafts for itself, over as much as each arm's budget says."""

    accepted: dict = field(default_factory=dict)  # P(a draft token is accepted), by budget
    step: dict = field(default_factory=dict)  # what a level costs, in plain rounds

    def arms(self):
        class Self(SelfDraft):
            def unread(self, batch):
                return 0

        drafts = [Arm(f"self {b}", Self(Streaming(4, b - 4)), Chain(5).build()) for b in sorted(self.accepted)]
        return [*drafts, Arm("none", NoDraft(), Chain(0).build())]

    def seconds(self, plan, rows):
        budget = getattr(getattr(plan.arm.drafter, "kv_policy", None), "budget", None)
        if not plan.shape.size or budget is None:
            return 1.0
        return 1.05 + 0.02 * rows * plan.shape.size + self.step[budget] * plan.shape.depth

    def path(self, plan, written, rng):
        self.model = self.accepted.get(getattr(getattr(plan.arm.drafter, "kv_policy", None), "budget", None), 0.0)
        return super().path(plan, written, rng)


STEPS = {256: 0.1, 512: 0.12, 1024: 0.2}
LONG = dict(prompt=8000, host=SimpleNamespace(key="host", weight_bytes=1e9, kv_bytes=6e5))  # mostly cache is read


@pytest.mark.parametrize(
    "accepted",
    [
        {256: 0.45, 512: 0.9, 1024: 0.92},
        {256: 0.85, 512: 0.86, 1024: 0.86},
        {256: 0.1, 512: 0.3, 1024: 0.95},
    ],
)
def test_a_budget_that_pays_is_found(accepted):
    """As fast as with nothing but the best one, nearly, and twice as fast as without any."""
    alone = [mean_speed(Budgets(accepted={b: p}, step=STEPS), 600, runs=12, **LONG) for b, p in accepted.items()]
    all_of_them = mean_speed(Budgets(accepted=accepted, step=STEPS), 600, runs=12, **LONG)
    assert all_of_them > 0.8 * max(alone)  # it knows nothing at first, and has two more to try
    assert all_of_them > 1.9


def test_several_useless_budgets_cost_little_more_than_one():
    one = mean_speed(Budgets(accepted={512: 0.05}, step=STEPS), 200, runs=12, **LONG)
    three = mean_speed(Budgets(accepted={256: 0.05, 512: 0.05, 1024: 0.05}, step=STEPS), 200, runs=12, **LONG)
    assert three > one - 0.02


def test_what_many_texts_were_like_is_known_of_the_next_one_too():
    """The rounds of one long text say little of another; the first rounds of many do."""
    known = seen(40.0, 20.0)
    beliefs = Beliefs({("lookup", False): known}, [LOOKUP])
    old, new = (SimpleNamespace(rows=(row,), sampling=False) for row in ("old", "new"))
    for _ in range(40):
        known.rows.observe("old", 1, 0, 1.0)
    assert beliefs.known_of(LOOKUP, old) == 40
    assert beliefs.known_of(LOOKUP, new) == pytest.approx(SHARED * 40)
    for other in range(30):
        known.rows.observe(other, 1, 0, 1.0)
    assert beliefs.known_of(LOOKUP, new) == 38
    half = SimpleNamespace(rows=("old", "new"), sampling=False)
    assert beliefs.known_of(LOOKUP, half) == 39
