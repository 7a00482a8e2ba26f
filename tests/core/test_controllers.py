"""Controllers. `goodput` in simulated generations: rounds with made-up times and yields, handed to the real controller."""

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch

from specplug import OptionError
from specplug.acceptance import Acceptance
from specplug.controllers import Arm, BatchTable, Fixed, Goodput, Memory, Slo
from specplug.controllers.trees import candidates, caps, entire, shape_of
from specplug.drafters import ModelDraft, NoDraft, PromptLookup
from specplug.host import Commit
from specplug.round import Seconds
from specplug.tree import ROOT_ONLY, child_counts
from specplug.trees import Chain, Sequoia
from specplug.verify import Verdict

HOST = SimpleNamespace(key="host")


@dataclass
class Draft(ModelDraft):
    """A draft that says how much it has not read."""

    missing: int = 0

    def unread(self, batch):
        return self.missing


@dataclass
class World:
    """How long a round takes, in units of a plain one, and what is accepted. Probabilities may depend on the tokens written."""

    model: float | Callable = 0.0  # P(the draft model's first child is accepted)
    lookup: float | Callable = 0.0
    node: float = 0.05  # what each further node of each row costs
    several: float = 0.15  # what it costs that there is more than one
    forward: float = 0.15  # of the draft model
    sibling: float = 0.3  # P(second child is accepted | the first is not); halves with every rank
    overhead: float = 0.05
    noise: float = 0.1
    hiccup: float = 0.01  # share of rounds that take four times as long
    prefill: float = 1.0  # what the draft's first use in a generation costs
    unread: int = 0  # tokens that it reads then

    def arms(self):
        draft, lookup = Draft("m", missing=self.unread), PromptLookup()
        return [
            Arm("tree", draft, Sequoia(8, 4).build()),
            Arm("big", draft, Sequoia(16, 6).build()),
            Arm("short", lookup, Chain(4).build()),
            Arm("lookup", lookup, Chain(10).build()),
            Arm("none", NoDraft(), Chain(0).build()),
        ]

    def seconds(self, plan, rows):
        if not plan.shape.size:
            return 1.0
        drafting = self.forward * plan.shape.depth if plan.arm.drafter.drafts_with_model else 0.0
        return 1 + self.overhead + self.several + self.node * rows * plan.shape.size + drafting

    def path(self, plan, written, rng):
        """The accepted nodes of one row, the root first."""
        chance = self.model if plan.arm.drafter.drafts_with_model else self.lookup
        chance = chance(written) if callable(chance) else chance
        children = {}
        for node, parent in enumerate(plan.shape.parents[1:], start=1):
            children.setdefault(parent, []).append(node)
        path = [0]
        while below := children.get(path[-1]):
            taken = next(
                (
                    child
                    for rank, child in enumerate(below)
                    if rng.random() < (chance if not rank else self.sibling / 2**rank)
                ),
                None,
            )
            if taken is None:
                break
            path.append(taken)
        return path


def finished_round(plan, batch, paths, new, seconds):
    """A round as a controller sees it."""
    longest = max(map(len, paths))
    counts = child_counts(plan.shape)
    children = torch.full((1, plan.shape.num_nodes, max(1, *counts) if len(counts) > 1 else 1), -1)
    seen = [0] * plan.shape.num_nodes
    for node, parent in enumerate(plan.shape.parents[1:], start=1):
        children[0, parent, seen[parent]] = node
        seen[parent] += 1
    return SimpleNamespace(
        batch=batch,
        plan=plan,
        commit=Commit(new),
        seconds=Seconds(seconds, 0.0, 0.0, 0.0),
        trees=SimpleNamespace(
            num_nodes=plan.shape.num_nodes, num_rows=len(paths), shape=plan.shape, children=children, valid=None
        ),
        verdict=Verdict(
            path=torch.tensor([path + [path[-1]] * (longest - len(path)) for path in paths]),
            num_accepted=torch.tensor([len(path) - 1 for path in paths]),
            bonus=torch.zeros(len(paths), dtype=torch.int64),
        ),
    )


def batch_of(rows, context, room):
    return SimpleNamespace(
        num_rows=rows, rows=tuple(range(rows)), context=context, room=max(1, room), sampling=False, history=None
    )


def simulate(world, tokens, seed=0, memory=None, rows=1, prompt=50, controller=None, host=HOST):
    """Generate `tokens` a row; returns (speed against plain decoding, seconds by drafter)."""
    rng = random.Random(seed)
    goodput = (controller or Goodput()).open(world.arms(), host, memory or Memory())
    done, elapsed, spent, warm = 0.0, 0.0, {"none": 0.0, "big": 0.0, "lookup": 0.0}, False
    while done < tokens:
        room = int(tokens - done)
        batch = batch_of(rows, prompt + int(done), room)
        plan = goodput.plan(batch)
        paths = [world.path(plan, done, rng) for _ in range(rows)]
        seconds = world.seconds(plan, rows)
        seen = seconds * rng.lognormvariate(0, world.noise) * (4 if rng.random() < world.hiccup else 1)
        if plan.arm.drafter.drafts_with_model and not warm:
            warm, seconds, seen = True, seconds + world.prefill, seen + world.prefill
            plan.arm.drafter.missing = 0
        new = [min(len(path), max(room, 1)) for path in paths]
        goodput.observe(finished_round(plan, batch, paths, new, seen))
        done += sum(new) / rows
        elapsed += seconds  # without the noise that the controller sees: its luck is no merit
        spent[plan.arm.label] = spent.get(plan.arm.label, 0.0) + seconds
    goodput.forget(tuple(range(rows)))
    return done / elapsed, spent


def mean_speed(world, tokens, runs=40, **options):
    return sum(simulate(world, tokens, seed=seed, **options)[0] for seed in range(runs)) / runs


USELESS = World(model=0.02, lookup=0.02)
GOOD_MODEL = World(model=0.75, lookup=0.05)
GOOD_LOOKUP = World(model=0.3, lookup=0.8)
WORLDS = {
    "useless": USELESS,
    "mildly bad": World(model=0.3, lookup=0.08, node=0.1, several=0.2),
    "dear": World(model=0.1, forward=1.0, node=0.2, several=0.3),
    "compute bound": World(model=0.6, lookup=0.3, node=0.5),
    "good model": GOOD_MODEL,
    "good lookup": GOOD_LOOKUP,
    "both": World(model=0.78, lookup=0.75),
}


@pytest.mark.parametrize(
    ("name", "rows", "short", "long"),
    [
        ("useless", 1, 0.93, 0.98),
        ("useless", 8, 0.94, 0.98),
        ("mildly bad", 1, 0.93, 0.97),
        ("mildly bad", 8, 0.94, 0.97),
        ("dear", 1, 0.92, 0.97),
        ("dear", 8, 0.88, 0.97),
        ("compute bound", 1, 0.91, 0.95),
        ("compute bound", 8, 0.84, 0.96),  # one node a row in the first trial costs four plain rounds
        ("good model", 1, 1.2, 1.42),  # of 1.53 with the best fixed tree
        ("good model", 8, 0.94, 0.98),
        ("good lookup", 1, 2.2, 2.5),  # of 2.71
        ("good lookup", 8, 1.12, 1.17),  # of 1.23
        ("both", 1, 1.95, 2.15),  # of 2.32
        ("both", 8, 1.04, 1.09),  # of 1.16
    ],
)
def test_goodput_never_loses_much_and_finds_what_is_good(name, rows, short, long):
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
    assert spent["lookup"] > 0.8 * sum(spent.values())


@pytest.mark.parametrize(("rows", "gained"), [(1, 2.2), (8, 1.04)])
def test_goodput_comes_back_when_conditions_change(rows, gained):
    """Lookup finds nothing for 1000 tokens (prose), then nearly everything (the text begins to repeat itself)."""
    world = World(model=0.05, lookup=lambda written: 0.0 if written < 1000 else 0.85)
    later = []
    for seed in range(8):
        assert simulate(world, 1000, seed=seed, rows=rows)[0] > 0.94
        whole = simulate(world, 3000, seed=seed, rows=rows)
        later.append(2000 / (3000 / whole[0] - 1000))
    assert sum(later) / len(later) > gained and min(later) > 0.98  # of up to 3.3 and 1.3


@pytest.mark.parametrize(("rows", "good"), [(1, 2.4), (8, 1.15)])
def test_goodput_gives_up_what_stops_being_good(rows, good):
    world = World(model=0.05, lookup=lambda written: 0.85 if written < 1000 else 0.0)
    for seed in range(4):
        first, whole = simulate(world, 1000, seed=seed, rows=rows)[0], simulate(world, 3000, seed=seed, rows=rows)[0]
        assert first > good
        assert 2000 / (3000 / whole - 1000 / first) > 0.93


def test_plain_decoding_is_not_tried_twice_running():
    """Where another drafter is about as good, it has to get its rounds as well, or what is wrong of its price stays wrong."""
    world = World(model=0.05, lookup=0.85)
    for seed in range(4):
        reasons = []

        class Watched(Goodput):
            def plan(self, batch, reasons=reasons):
                plan = super().plan(batch)
                reasons.append(plan.predicted.reason if plan.predicted else "")
                return plan

        simulate(world, 600, seed=seed, rows=8, controller=Watched())
        tried = [reason.startswith("tries plain") for reason in reasons]
        assert any(tried) and not any(first and second for first, second in itertools.pairwise(tried))


def test_goodput_looks_at_the_lookup_again_beside_a_good_draft():
    """What worked before is no reason never to look: the text begins to repeat itself while a draft model is at work."""
    world = World(model=0.75, lookup=lambda written: 0.1 if written < 200 else 0.92)
    assert mean_speed(world, 1500, runs=4) > 2.1  # 1.5 with the draft alone


def test_a_prompt_is_not_read_for_a_gain_that_is_smaller():
    """A draft that makes 1.1 times as fast, once it has read for twelve rounds: known to pay over 1500 tokens, not over 60."""
    world = World(model=0.55, lookup=0.02, prefill=12.0, unread=4096)
    memory = Memory()
    for seed in range(2):
        assert simulate(world, 1500, seed=seed, prompt=4096, memory=memory)[1]["big"] > 1000
    for seed in range(4):
        assert not simulate(world, 60, seed=seed, prompt=4096, memory=memory)[1]["big"]


def run_rounds(goodput, count, rows=1, context=500, room=100):
    """The plans of rounds in which nothing is accepted."""
    for _ in range(count):
        batch = batch_of(rows, context, room)
        plan = goodput.plan(batch)
        yield plan
        goodput.observe(finished_round(plan, batch, [[0]] * rows, [1] * rows, 1.0))


def test_goodput_measures_plain_decoding_first_and_leaves_short_contexts_alone():
    arms = [Arm("self", Draft("m"), Chain(3).build(), min_context=1000), Arm("none", NoDraft(), Chain(0).build())]
    assert {plan.arm.label for plan in run_rounds(Goodput().open(arms, HOST, Memory()), 50)} == {"none"}
    labels = [plan.arm.label for plan in run_rounds(Goodput().open(arms, HOST, Memory()), 50, context=2000)]
    assert labels[:2] == ["none"] * 2 and "self" in labels


def test_a_prompt_too_long_for_what_is_left_is_not_read_for_a_trial():
    """32 k tokens cost a draft as much as 150 rounds: too much for 96 more tokens, little for 3000."""
    world = replace(GOOD_MODEL, prefill=150.0, unread=32768, node=0.01)
    memory = Memory()
    for seed in range(5):
        speed, spent = simulate(world, 96, seed=seed, rows=4, prompt=8192, memory=memory)
        assert speed > 0.93
        assert not spent["big"]
    long, spent = simulate(world, 3000, rows=4, prompt=8192)
    assert spent["big"] > 500
    assert long > 1.25


def test_what_reading_cost_is_remembered():
    """Reading turned out ten times as dear as guessed: the next generation that could have tried does not."""
    world, memory = replace(GOOD_MODEL, prefill=1500.0, unread=32768, node=0.01), Memory()
    simulate(world, 1000, rows=4, prompt=8192, memory=memory)
    for seed in range(5):
        _, spent = simulate(world, 1000, seed=seed, rows=4, prompt=8192, memory=memory)
        assert not spent["big"]


def test_no_tree_is_deeper_than_what_is_left():
    arms = [Arm("lookup", PromptLookup(), Chain(10).build()), Arm("none", NoDraft(), Chain(0).build())]
    for room in (1, 2, 5):
        plans = list(run_rounds(Goodput().open(arms, HOST, Memory()), 50, room=room))
        assert max(plan.shape.depth for plan in plans) <= room - 1


def test_goodput_with_nothing_to_choose_from():
    goodput = Goodput().open([Arm("none", NoDraft(), Chain(0).build())], HOST, Memory())
    assert {plan.arm.label for plan in run_rounds(goodput, 5, rows=2, context=1, room=1)} == {"none"}


def test_one_arm_for_each_drafter_with_its_largest_tree():
    goodput = Goodput().open(World().arms(), HOST, Memory())
    assert [arm.label for arm in goodput.arms] == ["big", "lookup", "none"]


def plan_of(controller, rows, room=100):
    plan = controller.plan(batch_of(rows, 100, room))
    return plan.arm.label, plan.shape.depth


class Indivisible(PromptLookup):
    """A drafter whose tree is worth little in parts."""

    indivisible = True


@pytest.mark.parametrize("lookup", [0.05, 0.8])
def test_a_tree_that_is_worth_little_in_parts_is_taken_whole_or_not_at_all(lookup):
    own = Sequoia(24, 6).build()
    world = World(lookup=lookup, noise=0.0, hiccup=0.0)
    world.arms = lambda: [Arm("lookup", Indivisible(), own), Arm("none", NoDraft(), ROOT_ONLY)]
    shapes = []

    class Watched(Goodput):
        def plan(self, batch):
            plan = super().plan(batch)
            shapes.append(plan.shape)
            return plan

    simulate(world, 400, seed=3, controller=Watched())
    cut = {own.cut(depth) for depth in range(own.depth)}  # towards the end there is no room for more
    assert {own, ROOT_ONLY} <= set(shapes) <= {own, ROOT_ONLY, *cut}
    assert all(shape in (own, ROOT_ONLY) for shape in shapes[: -own.depth])
    assert (shapes.count(own) > len(shapes) / 2) == (lookup > 0.5)


def test_a_given_tree_is_expected_to_yield_what_the_same_tree_yields_when_it_is_grown():
    first, later = [0.7, 0.6, 0.5, 0.5], [0.4, 0.2, 0.1]
    for grown in (tree for cap in caps(4) for tree in candidates(first, later, 16, cap)):
        [given] = entire(first, later, shape_of(first, later, False, grown))
        assert given.tokens == pytest.approx(grown.tokens)
        assert (given.size, given.depth) == (grown.size, grown.depth)
    [deeper] = entire(first, later, Chain(6).build())  # deeper than anything was seen: as at the last depth
    assert deeper.tokens == pytest.approx(1 + 0.7 * (1 + 0.6 * (1 + 0.5 * (1 + 0.5 * (1 + 0.5 * (1 + 0.5))))))


def test_the_table_says_how_deep_by_the_batch():
    table = BatchTable("2-6/4-3/16-0").open(World().arms(), HOST, Memory())
    assert [plan_of(table, rows) for rows in (1, 2, 3, 4, 15, 16, 99)] == [
        ("tree", depth) for depth in (4, 4, 4, 3, 3, 0, 0)
    ]
    assert plan_of(table, 1, room=2) == ("tree", 1)


@pytest.mark.parametrize("table", ["", "4", "4-2/1-3", "1-2/1-3", "1--2", "0-3", "a-b"])
def test_a_table_that_is_none_is_refused(table):
    with pytest.raises(OptionError, match="batch sizes that rise"):
        BatchTable(table)


def test_the_objective_is_met_with_the_least_work():
    """A plain round takes 1000 ms here; the draft model can bring a token to some 650."""
    sizes = {}
    for ms in (2000.0, 850.0, 10.0):
        memory, world = Memory(), replace(GOOD_MODEL, noise=0.02)
        simulate(world, 600, seed=1, memory=memory, controller=Slo(ms=ms))
        slo = Slo(ms=ms).open(world.arms(), HOST, memory)
        list(run_rounds(slo, 1, context=600))
        speed, spent = simulate(world, 600, seed=2, memory=memory, controller=Slo(ms=ms))
        sizes[ms] = (speed, spent["none"] / sum(spent.values()))
    assert sizes[2000.0][1] > 0.9  # plain decoding is fast enough
    assert 1000 / sizes[850.0][0] < 900  # about met, and with less than goodput would do
    assert sizes[850.0][0] < sizes[10.0][0] and sizes[10.0][0] > 1.3  # never met: as fast as can be
    with pytest.raises(OptionError, match="slo: ms=0.* must be a positive"):
        Slo(ms=0)


def test_no_node_has_more_children_than_in_the_arms_own_tree():
    """A vocabulary of four has no fifth child to draw."""
    arms = [Arm("tree", Draft("m"), Sequoia(16, 6).build()), Arm("none", NoDraft(), Chain(0).build())]
    most = max(child_counts(arms[0].shape))
    memory = Memory()
    learnt = memory.of(HOST, arms)
    learnt.acceptance["tree", False] = Acceptance(prior=0.01, later_prior=(0.9,) * 8, tried=[5.0] * 12)
    goodput = Goodput(credit=100.0).open(arms, HOST, memory)
    shapes = [plan.shape for plan in run_rounds(goodput, 20)]
    assert max(max(child_counts(shape)) for shape in shapes) == most < 8


def test_fixed_does_what_it_is_told_and_cuts_at_the_end():
    arms = [Arm("tree", ModelDraft("m"), Sequoia(8, 4).build()), Arm("none", NoDraft(), Chain(0).build())]
    fixed = Fixed().open(arms, HOST, Memory())
    for room, depth in ((100, 4), (4, 3), (1, 0)):
        plan = fixed.plan(SimpleNamespace(room=room, sampling=False))
        assert (plan.arm.label, plan.shape.depth) == ("tree", depth)
    # a sampled row's draws must not depend on its neighbours' room
    assert fixed.plan(SimpleNamespace(room=1, sampling=True)).shape is arms[0].shape
    assert not Fixed.needs_baseline


if __name__ == "__main__":  # a table for whoever tunes the controller
    for name, world in WORLDS.items():
        for rows in (1, 8):
            print(
                f"{name:16} rows {rows}  " + "  ".join(f"{mean_speed(world, n, 12, rows=rows):.3f}" for n in (96, 400))
            )


READS_LONG = {
    "prefill": 16.0,
    "unread": 8192,
}  # of eight rows: a sixth of the time that 96 tokens of plain decoding take


def test_a_prompt_is_not_read_again_and_again_on_a_mere_hope():
    speeds = []
    for seed in range(6):
        memory, world = Memory(), World(model=0.02, lookup=0.02, node=0.1, several=0.2, forward=0.2, **READS_LONG)
        speeds += [simulate(world, 96, seed=10 * seed + turn, memory=memory, rows=8)[0] for turn in range(3)]
    assert sum(speeds) / len(speeds) > 0.97


def test_a_long_generation_gives_an_unseen_draft_its_chance():
    world = World(model=0.8, lookup=0.02, node=0.03, several=0.1, **READS_LONG)
    assert mean_speed(world, 400, runs=6, rows=8) > 1.1
