"""Sizes of rows: who gets how much of a batch's budget, and trees that are cut to it."""

import itertools
import random
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from specplug.controllers import Goodput, Memory
from specplug.controllers.rows import sizes_by_row
from specplug.ragged import limited
from specplug.tree import fill_shape
from specplug.trees import Sequoia, expected_tokens
from specplug.verify import verify_greedy

from .test_controllers import GOOD_LOOKUP, HOST, World, batch_of, finished_round

CHAIN = [(depth, 0.8**depth) for depth in range(1, 7)]


def tokens_of(nodes, ratio, size):
    return 1 + sum(min(1.0, p * ratio**depth) for depth, p in nodes[:size])


@given(st.lists(st.floats(0.2, 1.2), min_size=1, max_size=3), st.floats(0.0, 0.3), st.integers(0, 20))
def test_rows_get_what_pays_for_them(ratios, price, seed):
    def seconds(count):
        return 1.0 + price * count

    sizes, tokens = sizes_by_row(CHAIN, ratios, seconds)
    assert tokens == pytest.approx(sum(tokens_of(CHAIN, r, n) for r, n in zip(ratios, sizes, strict=True)))
    rate = tokens / seconds(sum(sizes))
    every = itertools.product(range(len(CHAIN) + 1), repeat=len(ratios))
    best = max(
        sum(tokens_of(CHAIN, r, n) for r, n in zip(ratios, some, strict=True)) / seconds(sum(some))
        for some in every
        if any(some)
    )
    assert rate > 0.93 * best  # not every total is priced
    pairs = itertools.combinations(range(len(ratios)), 2)
    assert all((sizes[a] - sizes[b]) * (ratios[a] - ratios[b]) >= 0 for a, b in pairs)  # harder text never gets more


@given(st.integers(0, 500))
def test_a_cut_tree_is_the_smaller_tree(seed):
    """Cut to its first k nodes by priority, a tree yields what the tree of k nodes yields."""
    dice = random.Random(seed)
    shape, rows = Sequoia(9, 4).build(), 3
    ranks = [sum(shape.parents[other] == parent for other in range(node)) for node, parent in enumerate(shape.parents)]
    tokens = torch.tensor([ranks] * rows)  # siblings propose different tokens
    targets = torch.tensor([[dice.choice((0, 0, 1, 2)) for _ in range(shape.num_nodes)] for _ in range(rows)])
    sizes = [dice.randrange(shape.size + 1) for _ in range(rows)]
    cut = verify_greedy(limited(fill_shape(shape, tokens), shape, sizes), targets)
    for row, size in enumerate(sizes):
        kept = [node for node in range(shape.num_nodes) if shape.priority[node] <= size]
        node, accepted = 0, 0
        while True:
            below = [n for n in kept if shape.parents[n] == node and tokens[row, n] == targets[row, node]]
            if not below:
                break
            node, accepted = below[0], accepted + 1
        assert int(cut.num_accepted[row]) == accepted
        assert int(cut.bonus[row]) == int(targets[row, node])


def test_the_first_nodes_by_priority_are_the_best_smaller_tree():
    vector = (0.6, 0.2, 0.1)
    large = Sequoia(9, 4).build(vector)
    for size in range(1, 9):
        kept = [node for node in range(large.num_nodes) if large.priority[node] <= size]
        place = {node: i for i, node in enumerate(kept)}
        cut = tuple(-1 if large.parents[node] < 0 else place[large.parents[node]] for node in kept)
        assert expected_tokens(replace(large, parents=cut, priority=()), vector) == pytest.approx(
            expected_tokens(Sequoia(size, 4).build(vector), vector)
        )


def speed(world, flat, seed, tokens=400, rows=6):
    """Tokens a row and plain round where half of the rows copy their text and half do not."""
    rng = random.Random(seed)
    host = SimpleNamespace(key="host", padded_tokens=(sum if flat else lambda sizes: len(sizes) * max(sizes)))
    goodput = Goodput().open(world.arms(), host, Memory())
    done, elapsed = 0.0, 0.0
    while done < tokens:
        batch = batch_of(rows, 50 + int(done), int(tokens - done) + 1)
        plan = goodput.plan(batch)
        paths = []
        for row in range(rows):
            path = replace(world, lookup=world.lookup if row % 2 else 0.02).path(plan, done, rng)
            most = plan.shape.size if plan.sizes is None else plan.sizes[row]
            paths.append([node for node in path if plan.shape.priority[node] <= most])
        sizes = plan.sizes or (plan.shape.size,) * rows
        drafting = world.forward * plan.shape.depth if plan.arm.drafter.drafts_with_model else 0.0
        verified = host.padded_tokens([size + 1 for size in sizes]) - rows
        seconds = 1 + (world.several + world.overhead + world.node * verified + drafting if plan.shape.size else 0.0)
        new = [len(path) for path in paths]
        goodput.observe(finished_round(plan, batch, paths, new, seconds * rng.lognormvariate(0, 0.05)))
        done, elapsed = done + sum(new) / rows, elapsed + seconds
    return done / elapsed


def test_rows_of_unequal_text_get_unequal_trees_where_that_saves_something():
    world = replace(GOOD_LOOKUP, model=0.02, lookup=0.85, node=0.04)
    flat, padded = (sum(speed(world, kind, seed) for seed in range(6)) / 6 for kind in (True, False))
    assert flat > 1.05 * padded  # 1.26 and 1.02 when this was written
    assert not any(plan.sizes for plan in plans(world, HOST))


def plans(world: World, host):
    goodput = Goodput().open(world.arms(), host, Memory())
    for step in range(30):
        batch = batch_of(4, 50 + step, 100)
        plan = goodput.plan(batch)
        yield plan
        goodput.observe(finished_round(plan, batch, [[0]] * 4, [1] * 4, 1.0))
