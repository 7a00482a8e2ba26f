"""Controllers. `auto` in simulated generations: rounds with made-up times and yields, handed to the real controller."""

import random
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch

from specplug.controllers import Arm, Auto, Fixed, Memory
from specplug.drafters import ModelDraft, NoDraft, PromptLookup
from specplug.host import Commit
from specplug.round import Seconds
from specplug.trees import Chain, Sequoia


@dataclass
class World:
    """How long a round takes and what it yields, in units of a plain round. `arms`: label -> (seconds, acceptance)."""

    arms: dict
    noise: float = 0.1
    hiccup: float = 0.01  # share of rounds that take four times as long
    prefill: float = 1.0  # what a draft's first use in a generation costs
    shapes: dict = field(default_factory=lambda: {"tree": Sequoia(8, 4).build(), "chain": Chain(3).build()})

    def arms_for(self):
        made = [
            Arm("tree", ModelDraft("m"), Sequoia(8, 4).build()),
            Arm("chain", ModelDraft("m"), Chain(3).build()),
            Arm("big", ModelDraft("m"), Sequoia(16, 6).build()),
            Arm("lookup", PromptLookup(), Chain(10).build()),
            Arm("short", PromptLookup(), Chain(4).build()),
        ]
        return [*(arm for arm in made if arm.label in self.arms), Arm("none", NoDraft(), Chain(0).build())]

    def round(self, arm, step, rng):
        seconds, acceptance = (1.0, 0.0) if arm.label == "none" else self.arms[arm.label]
        if callable(acceptance):
            acceptance = acceptance(step)
        accepted = 0
        while accepted < arm.shape.depth and rng.random() < acceptance:
            accepted += 1
        seconds *= rng.lognormvariate(0, self.noise) * (4 if rng.random() < self.hiccup else 1)
        return seconds, accepted + 1


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
        results = [world.round(plan.arm, done, rng) for _ in range(rows)]
        seconds = results[0][0]
        if plan.arm.drafter.drafts_with_model and "model" not in warm:
            seconds += world.prefill
            warm.add("model")
        new = [min(count, plan.shape.depth + 1, max(room, 1)) for _, count in results]
        finished = SimpleNamespace(
            batch=batch, plan=plan, commit=Commit(new), seconds=Seconds(0.0, seconds, 0.0, 0.0)
        )
        auto.observe(finished)
        done += sum(new) / rows
        elapsed += seconds
        spent[plan.arm.label] += seconds
    return done / elapsed, spent


def mean_speed(world, tokens, runs=40, **options):
    return sum(simulate(world, tokens, seed=seed, **options)[0] for seed in range(runs)) / runs


# seconds of a round and acceptance of a token
USELESS = World({"tree": (2.2, 0.02), "chain": (1.9, 0.02), "big": (2.8, 0.02), "lookup": (1.08, 0.01), "short": (1.04, 0.01)})
MILDLY_BAD = World({"tree": (1.5, 0.3), "chain": (1.4, 0.3), "big": (1.8, 0.3), "lookup": (1.15, 0.08), "short": (1.1, 0.08)})
DEAR = World({"tree": (5.0, 0.1), "chain": (4.0, 0.1), "big": (7.0, 0.1), "lookup": (1.3, 0.0), "short": (1.2, 0.0)})
GOOD_MODEL = World({"tree": (1.6, 0.75), "chain": (1.45, 0.7), "big": (2.0, 0.75), "lookup": (1.08, 0.05), "short": (1.04, 0.05)})
GOOD_LOOKUP = World({"tree": (2.2, 0.3), "chain": (1.9, 0.3), "big": (2.8, 0.3), "lookup": (1.15, 0.8), "short": (1.08, 0.8)})
LOOKUP_ONLY = World({"lookup": (1.08, 0.0), "short": (1.04, 0.0)})
QUIET = {"noise": 0.0, "hiccup": 0.0}


WORLDS = {
    "useless": USELESS,
    "mildly bad": MILDLY_BAD,
    "dear": DEAR,
    "good model": GOOD_MODEL,
    "good lookup": GOOD_LOOKUP,
    "lookup only": LOOKUP_ONLY,
}


if __name__ == "__main__":  # a table for whoever tunes the controller
    for name, world in WORLDS.items():
        base = World({"none": (1, 0)}, world.noise, world.hiccup)
        for tokens in (96, 1000):
            for rows in (1, 8):
                plain = mean_speed(World({}), tokens, runs=20, rows=rows)
                speeds = sorted(simulate(world, tokens, seed=s, rows=rows)[0] / plain for s in range(40))
                print(f"{name:12} tokens={tokens:4} rows={rows} mean={sum(speeds)/40:.3f} worst={speeds[0]:.3f} p10={speeds[4]:.3f}", simulate(world, tokens, rows=rows)[1] if rows == 1 else "")
