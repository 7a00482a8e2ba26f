"""What `goodput` says it expects of its plans."""

import random

import pytest

from core.test_controllers import HOST, World, batch_of, finished_round
from core.test_round import PROMPTS, host_of
from core.tools import near, table
from specplug import Speculator, run_round, trace
from specplug.controllers import Goodput, Memory, Slo
from specplug.controllers.base import Prediction

TARGET = table(6, 1)


def play(world, controller, tokens=1500, rows=1, seed=0):
    """Plans with what became of them: (plan, real tokens a row, real seconds)."""
    rng = random.Random(seed)
    working, done, found, warm = controller.open(world.arms(), HOST, Memory()), 0.0, [], False
    while done < tokens:
        batch = batch_of(rows, 50 + int(done), int(tokens - done))
        plan = working.plan(batch)
        paths = [world.path(plan, done, rng) for _ in range(rows)]
        seconds = world.seconds(plan, rows) + (
            world.prefill if plan.arm.drafter.drafts_with_model and not warm else 0.0
        )
        warm = warm or plan.arm.drafter.drafts_with_model
        new = [min(len(path), batch.room) for path in paths]
        working.observe(finished_round(plan, batch, paths, new, seconds))
        found.append((plan, sum(new) / rows, seconds))
        done += sum(new) / rows
    return found


WORLD = World(model=0.78, lookup=0.02, noise=0.0, hiccup=0.0)


@pytest.mark.parametrize("controller", [Goodput(), Slo(ms=700.0)])
@pytest.mark.parametrize("rows", [1, 4])
def test_every_plan_says_why_and_what_it_expects(controller, rows):
    found = play(WORLD, controller, rows=rows)
    assert all(isinstance(plan.predicted, Prediction) and plan.predicted.reason for plan, _, _ in found)
    reasons = [plan.predicted.reason for plan, _, _ in found]
    # nothing is known of the times yet, then of one round's
    assert found[0][0].predicted == Prediction("measures plain decoding", 1.0, None)
    assert found[1][0].predicted == Prediction("measures plain decoding", 1.0, pytest.approx(1.0))
    caught = [plan for plan, _, _ in found if plan.predicted.reason == "its caches catch up"]
    assert len(caught) == 1 and caught[0].shape.size == 1
    assert (caught[0].predicted.tokens, caught[0].predicted.seconds) == (None, None)
    assert "tries it: nothing was seen of it yet" in reasons
    assert any(reason.startswith("best of") for reason in reasons)
    assert any(reason.endswith(", at the last look") for reason in reasons)
    for plan, _, _ in found:
        if plan.predicted.reason == "tries plain decoding again":
            assert not plan.shape.size
        if plan.predicted.reason.startswith("tries it"):
            assert plan.shape.size


def test_what_is_predicted_comes_about():
    """Over the later part of a long text, in a world without noise: sums of what was predicted and of what was real."""
    found = [entry for entry in play(WORLD, Goodput(), tokens=3000)[150:] if entry[0].shape.size]
    assert len(found) > 300
    predicted = [plan.predicted for plan, _, _ in found]
    assert sum(p.seconds for p in predicted) == pytest.approx(sum(seconds for _, _, seconds in found), rel=0.05)
    assert sum(p.tokens for p in predicted) == pytest.approx(sum(tokens for _, tokens, _ in found), rel=0.1)


def test_a_recording_has_what_was_predicted():
    plans = []
    host = host_of(TARGET, PROMPTS[:2], new_tokens=60)
    with trace.recording() as recording:
        session = Speculator(draft_model=near(TARGET, 77)).open(host)
        while len(host.active):
            finished = run_round(host, session)
            plans.append(finished.plan.predicted)
            session.observe(finished)
    (generation,) = recording.generations
    kept = [(r.reason, r.predicted_tokens, r.predicted_seconds) for r in generation.rounds]
    assert kept == [(p.reason, p.tokens, p.seconds) for p in plans]
    assert generation.controller == "Goodput"
    assert len({reason for reason, _, _ in kept}) > 2
