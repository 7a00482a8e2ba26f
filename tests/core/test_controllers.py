"""Controllers. `auto` in simulated generations: rounds with made-up times and yields, handed to the real controller."""

import random
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch

from specplug.controllers import Arm, Auto, Fixed, Memory
from specplug.controllers.memory import Record
from specplug.drafters import ModelDraft, NoDraft, PromptLookup
from specplug.host import Commit
from specplug.round import Seconds
from specplug.trees import Chain, Sequoia


@dataclass
class Draft(ModelDraft):
    """A draft that says how much it has not read."""

    missing: int = 0

    def unread(self, batch):
        return self.missing


@dataclass
class World:
    """How long a round takes and what it yields, in units of a plain round. `arms`: label -> (seconds, acceptance)."""

    arms: dict
    noise: float = 0.1
    hiccup: float = 0.01  # share of rounds that take four times as long
    prefill: float = 1.0  # what a draft's first use in a generation costs
    unread: int = 0  # tokens that it reads then

    def arms_for(self):
        draft = Draft("m", missing=self.unread)
        made = [
            Arm("tree", draft, Sequoia(8, 4).build()),
            Arm("chain", draft, Chain(3).build()),
            Arm("big", draft, Sequoia(16, 6).build()),
            Arm("lookup", PromptLookup(), Chain(10).build()),
            Arm("short", PromptLookup(), Chain(4).build()),
        ]
        return [*(arm for arm in made if arm.label in self.arms), Arm("none", NoDraft(), Chain(0).build())]

    def round(self, arm, shape, step, rng):
        seconds, acceptance = (1.0, 0.0) if arm.label == "none" else self.arms[arm.label]
        if shape.depth < arm.shape.depth:
            seconds = 1 + (seconds - 1) * shape.depth / arm.shape.depth
        if callable(acceptance):
            acceptance = acceptance(step)
        accepted = 0
        while accepted < shape.depth and rng.random() < acceptance:
            accepted += 1
        seen = seconds * rng.lognormvariate(0, self.noise) * (4 if rng.random() < self.hiccup else 1)
        return seconds, seen, accepted + 1


def simulate(world, tokens, seed=0, memory=None, rows=1, prompt=50, controller=None):
    """Generate `tokens` a row; returns (speed against plain decoding, seconds by arm)."""
    rng = random.Random(seed)
    arms = world.arms_for()
    auto = (controller or Auto()).open(arms, SimpleNamespace(key="host"), memory or Memory())
    done, elapsed, spent, warm = 0.0, 0.0, dict.fromkeys([arm.label for arm in arms], 0.0), set()
    while done < tokens:
        room = int(tokens - done)
        batch = SimpleNamespace(
            num_rows=rows, context=prompt + int(done), room=max(room, 1), sampling=False, rows=tuple(range(rows))
        )
        plan = auto.plan(batch)
        results = [world.round(plan.arm, plan.shape, done, rng) for _ in range(rows)]
        seconds, seen, _ = results[0]
        if plan.arm.drafter.drafts_with_model and "model" not in warm:
            seconds, seen = seconds + world.prefill, seen + world.prefill
            warm.add("model")
            plan.arm.drafter.missing = 0
        new = [min(count, plan.shape.depth + 1, max(room, 1)) for _, _, count in results]
        finished = SimpleNamespace(batch=batch, plan=plan, commit=Commit(new), seconds=Seconds(seen, 0.0, 0.0, 0.0))
        auto.observe(finished)
        done += sum(new) / rows
        elapsed += seconds  # without the noise that the controller sees: its luck is no merit
        spent[plan.arm.label] += seconds
    return done / elapsed, spent


def mean_speed(world, tokens, runs=40, **options):
    return sum(simulate(world, tokens, seed=seed, **options)[0] for seed in range(runs)) / runs


# seconds of a round and acceptance of a token
USELESS = World(
    {"tree": (2.2, 0.02), "chain": (1.9, 0.02), "big": (2.8, 0.02), "lookup": (1.08, 0.01), "short": (1.04, 0.01)}
)
MILDLY_BAD = World(
    {"tree": (1.5, 0.3), "chain": (1.4, 0.3), "big": (1.8, 0.3), "lookup": (1.15, 0.08), "short": (1.1, 0.08)}
)
DEAR = World({"tree": (5.0, 0.1), "chain": (4.0, 0.1), "big": (7.0, 0.1), "lookup": (1.3, 0.0), "short": (1.2, 0.0)})
GOOD_MODEL = World(
    {"tree": (1.6, 0.75), "chain": (1.45, 0.7), "big": (2.0, 0.75), "lookup": (1.08, 0.05), "short": (1.04, 0.05)}
)
GOOD_LOOKUP = World(
    {"tree": (2.2, 0.3), "chain": (1.9, 0.3), "big": (2.8, 0.3), "lookup": (1.15, 0.8), "short": (1.08, 0.8)}
)
LOOKUP_ONLY = World({"lookup": (1.08, 0.0), "short": (1.04, 0.0)})

WORLDS = {
    "useless": USELESS,
    "mildly bad": MILDLY_BAD,
    "dear": DEAR,
    "good model": GOOD_MODEL,
    "good lookup": GOOD_LOOKUP,
    "lookup only": LOOKUP_ONLY,
}


@pytest.mark.parametrize("rows", [1, 8])
@pytest.mark.parametrize(
    ("name", "short", "long"),
    [
        # speed against plain decoding over 96 and over 1000 tokens, from nothing known, mean of 12 noisy runs
        ("useless", 0.95, 0.97),
        ("mildly bad", 0.96, 0.98),
        ("dear", 0.93, 0.97),  # one draft round costs five plain ones: two of them are 6 % of 96
        ("lookup only", 0.96, 0.97),
        ("good model", 1.15, 1.45),
        ("good lookup", 2.0, 3.0),
    ],
)
def test_auto_never_loses_much_and_finds_what_is_good(name, short, long, rows):
    assert mean_speed(WORLDS[name], 96, runs=12, rows=rows) > short
    assert mean_speed(WORLDS[name], 1000, runs=4, rows=rows) > long


@pytest.mark.parametrize("name", ["useless", "dear"])
def test_what_was_learnt_is_not_paid_for_again(name):
    """The tenth generation of a Speculator whose draft is useless costs next to nothing."""
    speeds = []
    for seed in range(6):
        memory = Memory()
        for _ in range(9):
            simulate(WORLDS[name], 96, seed=seed, memory=memory)
        speeds.append(simulate(WORLDS[name], 96, seed=seed + 100, memory=memory)[0])
    assert sum(speeds) / len(speeds) > 0.95


def test_a_good_draft_is_kept():
    spent = simulate(GOOD_LOOKUP, 3000, seed=1)[1]
    assert spent["lookup"] + spent["short"] > 0.8 * sum(spent.values())


@pytest.mark.parametrize("rows", [1, 8])
def test_auto_comes_back_when_conditions_change(rows):
    """Lookup finds nothing for 1000 tokens (prose), then nearly everything (the text begins to repeat itself)."""
    world = World({"lookup": (1.1, lambda step: 0.0 if step < 1000 else 0.85), "tree": (2.0, 0.05)})
    for seed in range(4):
        assert simulate(world, 1000, seed=seed, rows=rows)[0] > 0.95
        whole = simulate(world, 3000, seed=seed, rows=rows)
        assert 2000 / (3000 / whole[0] - 1000) > 1.6  # of up to 4.7


@pytest.mark.parametrize("rows", [1, 8])
def test_auto_gives_up_what_stops_being_good(rows):
    world = World({"lookup": (1.3, lambda step: 0.85 if step < 1000 else 0.0), "tree": (2.0, 0.05)})
    for seed in range(4):
        first, whole = simulate(world, 1000, seed=seed, rows=rows)[0], simulate(world, 3000, seed=seed, rows=rows)[0]
        assert first > 1.8
        assert 2000 / (3000 / whole - 1000 / first) > 0.93


def test_auto_measures_plain_decoding_first_and_leaves_short_contexts_alone():
    arms = [Arm("self", Draft("m"), Chain(3).build(), min_context=1000), Arm("none", NoDraft(), Chain(0).build())]
    auto = Auto().open(arms, SimpleNamespace(key="host"), Memory())
    for _ in range(50):
        batch = SimpleNamespace(num_rows=1, context=500, room=100, sampling=False)
        plan = auto.plan(batch)
        assert plan.arm.label == "none"
        auto.observe(SimpleNamespace(batch=batch, plan=plan, commit=Commit([1]), seconds=Seconds(0, 1, 0, 0)))


def test_a_prompt_too_long_for_what_is_left_is_not_read_for_a_trial():
    """32 k tokens cost a draft as much as 150 rounds: too much for 96 more tokens, little for 3000."""
    world = replace(GOOD_MODEL, prefill=150.0, unread=32768)
    memory = Memory()
    for seed in range(5):
        speed, spent = simulate(world, 96, seed=seed, rows=4, prompt=8192, memory=memory)
        assert speed > 0.95
        assert not spent["tree"] + spent["chain"] + spent["big"]
    long, spent = simulate(world, 3000, rows=4, prompt=8192)
    assert spent["tree"] + spent["chain"] + spent["big"] > 500
    assert long > 1.25


def test_what_reading_cost_is_remembered():
    """Reading turned out ten times as dear as guessed: the next generation that could have tried does not."""
    world, memory = replace(GOOD_MODEL, prefill=1500.0, unread=32768), Memory()
    simulate(world, 1000, rows=4, prompt=8192, memory=memory)
    for seed in range(5):
        _, spent = simulate(world, 1000, seed=seed, rows=4, prompt=8192, memory=memory)
        assert not spent["tree"] + spent["chain"] + spent["big"]


def test_auto_does_not_try_what_would_be_cut():
    arms = [Arm("lookup", PromptLookup(), Chain(10).build()), Arm("none", NoDraft(), Chain(0).build())]
    auto = Auto().open(arms, SimpleNamespace(key="host"), Memory())
    for _ in range(50):
        batch = SimpleNamespace(num_rows=1, context=500, room=10, sampling=False)
        plan = auto.plan(batch)
        assert plan.arm.label == "none"
        auto.observe(SimpleNamespace(batch=batch, plan=plan, commit=Commit([1]), seconds=Seconds(0, 1, 0, 0)))


def test_auto_with_nothing_to_choose_from():
    auto = Auto().open([Arm("none", NoDraft(), Chain(0).build())], SimpleNamespace(key="host"), Memory())
    batch = SimpleNamespace(num_rows=2, context=1, room=1, sampling=True)
    for _ in range(5):
        plan = auto.plan(batch)
        auto.observe(
            SimpleNamespace(batch=batch, plan=plan, commit=Commit(torch.tensor([1, 1])), seconds=Seconds(0, 0, 0, 0))
        )
    assert plan.arm.label == "none"


def test_fixed_does_what_it_is_told_and_cuts_at_the_end():
    arms = [Arm("tree", ModelDraft("m"), Sequoia(8, 4).build()), Arm("none", NoDraft(), Chain(0).build())]
    fixed = Fixed().open(arms, SimpleNamespace(key="host"), Memory())
    for room, depth in ((100, 4), (4, 3), (1, 0)):
        plan = fixed.plan(SimpleNamespace(room=room, sampling=False))
        assert (plan.arm.label, plan.shape.depth) == ("tree", depth)
    # a sampled row's draws must not depend on its neighbours' room
    assert fixed.plan(SimpleNamespace(room=1, sampling=True)).shape is arms[0].shape
    assert not Fixed.needs_baseline


def test_a_neighbouring_situation_starts_from_what_is_known():
    memory = Memory()
    known = memory.situation("host", 1, 6)
    known.records["tree"] = Record()
    known.records["tree"].update(2.0, 3.0, 50, 0.1)
    near = memory.situation("host", 1, 7)
    assert near.inherited
    assert (near.records["tree"].tokens, near.records["tree"].samples) == (3.0, 3)
    assert known.records["tree"].samples == 50
    assert not memory.situation("another host", 1, 7).records


if __name__ == "__main__":  # a table for whoever tunes the controller
    for name, world in WORLDS.items():
        for tokens in (96, 1000):
            for rows in (1, 8):
                speeds = sorted(simulate(world, tokens, seed=s, rows=rows)[0] for s in range(40))
                print(
                    f"{name:12} tokens={tokens:4} rows={rows} mean={sum(speeds) / 40:.3f} worst={speeds[0]:.3f} p10={speeds[4]:.3f}",
                    simulate(world, tokens, rows=rows)[1] if rows == 1 else "",
                )
