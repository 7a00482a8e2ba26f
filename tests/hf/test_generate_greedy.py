"""Greedy `generate(assistant=...)` says token for token what plain `generate` says."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from generate_tools import DRAFTERS, TREES, Models, Oracle, disturbed, prompt, same, speculator, tiny

from specplug import Controller, Plan, Speculator
from specplug.controllers.base import planned

NEW = 12
PADDINGS = ("none", "left", "right", "holes")


class Sometimes(Controller):
    """Speculates in some rounds, by the number of tokens in the cache."""

    needs_baseline = True

    def plan(self, batch: Any) -> Plan:
        return planned(self.arms[0] if batch.context % 5 == 0 else self.arms[-1], batch)


def plain(models: Models, rows: int, padding: str) -> Any:
    key = (rows, padding)
    if key not in models.expected:
        models.expected[key] = models.target.generate(**prompt(rows, padding), max_new_tokens=NEW)
    return models.expected[key]


def grid() -> Iterator[Any]:
    """Every combination; single rows and chains of all paddings are left to the long run."""
    for drafter, tree, rows, padding in itertools.product(DRAFTERS, TREES, (1, 3), PADDINGS):
        long = rows == 1 and (tree != "sequoia" or padding in ("none", "right"))
        long = long or (rows == 3 and tree == "kary" and padding in ("none", "right"))
        yield pytest.param(drafter, tree, rows, padding, marks=[pytest.mark.slow] if long else [])


@pytest.mark.parametrize(("drafter", "tree", "rows", "padding"), list(grid()))
def test_every_drafter_and_tree_says_what_plain_says(fp64: Models, drafter: str, tree: str, rows: int, padding: str):
    ours = fp64.target.generate(**prompt(rows, padding), max_new_tokens=NEW, assistant=speculator(drafter, fp64, tree))
    same(ours, plain(fp64, rows, padding))


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("drafter", DRAFTERS)
def test_float32_says_what_plain_says(fp32: Models, drafter: str, padding: str):
    ours = fp32.target.generate(**prompt(3, padding), max_new_tokens=NEW, assistant=speculator(drafter, fp32))
    same(ours, plain(fp32, 3, padding))


@pytest.mark.parametrize("spoil", [0.0, 0.3])
@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("padding", PADDINGS)
def test_rows_that_are_accepted_at_different_speeds(fp64: Models, tree: str, padding: str, spoil: float):
    expected = plain(fp64, 3, padding)
    oracle = Speculator(drafter=Oracle(expected[:, 11:], 11, spoil), tree=TREES[tree], controller="fixed")
    same(fp64.target.generate(**prompt(3, padding), max_new_tokens=NEW, assistant=oracle), expected)
    assert oracle.stats.accepted_length > 1.5  # or the oracle is none and this test shows nothing


@pytest.mark.parametrize("rows", [1, 3])
def test_prompt_lookup_that_finds_something(rows: int):
    model = tiny(scale=0.06)  # writes in circles
    spec = Speculator(drafter="prompt_lookup", tree="chain:length=5", controller="fixed")
    expected = model.generate(**prompt(rows, "left"), max_new_tokens=40)
    same(model.generate(**prompt(rows, "left"), max_new_tokens=40, assistant=spec), expected)
    assert spec.stats.accepted_length > 1.5


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("padding", PADDINGS)
def test_both_attention_implementations(attention: str, padding: str):
    # transformers' eager softmax is float32 and makes NaN of a float64 mask where padding comes first
    model = tiny(attention=attention, dtype="float32")
    models = Models(model, disturbed(model, 0.05), model)
    expected = model.generate(**prompt(3, padding), max_new_tokens=NEW)
    same(model.generate(**prompt(3, padding), max_new_tokens=NEW, assistant=speculator("model", models)), expected)
    assert model.config._attn_implementation == attention


@pytest.mark.parametrize("drafter", ["self-streaming", "model-streaming", "model", "prompt_lookup"])
def test_a_generation_far_longer_than_every_first_allocation(fp64: Models, drafter: str):
    inputs = prompt(2, "left", length=40)
    expected = fp64.target.generate(**inputs, max_new_tokens=100)
    same(fp64.target.generate(**inputs, max_new_tokens=100, assistant=speculator(drafter, fp64)), expected)


@pytest.mark.parametrize("drafter", ["self-streaming", "model-streaming", "model"])
def test_a_prompt_of_one_token(fp64: Models, drafter: str):
    inputs = prompt(1, length=1)
    expected = fp64.target.generate(**inputs, max_new_tokens=NEW)
    same(fp64.target.generate(**inputs, max_new_tokens=NEW, assistant=speculator(drafter, fp64)), expected)


@pytest.mark.parametrize("drafter", ["self-streaming", "model", "prompt_lookup"])
def test_a_draft_that_joins_in_late(fp64: Models, drafter: str):
    """`auto` may leave a drafter alone for many rounds; it must then catch up on what it has not read."""
    inputs = prompt(3, "left")
    expected = fp64.target.generate(**inputs, max_new_tokens=60)
    auto = speculator(drafter, fp64, controller=Sometimes())
    same(fp64.target.generate(**inputs, max_new_tokens=60, assistant=auto), expected)
    assert len(auto.stats.rounds_by_arm) == 2


def test_everything_left_to_auto(fp64: Models):
    inputs = prompt(3, "holes")
    expected = fp64.target.generate(**inputs, max_new_tokens=50)
    for _ in range(2):
        same(fp64.target.generate(**inputs, max_new_tokens=50, assistant=Speculator()), expected)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_many_random_calls(fp64: Models, seed: int):
    generator = torch.Generator().manual_seed(seed)

    def pick(options: Any) -> Any:
        return options[int(torch.randint(len(options), (1,), generator=generator))]

    for _ in range(5):
        rows, padding, length = pick((1, 2, 5)), pick(PADDINGS), pick((8, 13, 30))
        inputs = prompt(rows, padding, length, seed=seed)
        new = pick((5, 23, 70))
        eos = pick(([7], [3, 50, 9], None))
        more = {"max_new_tokens": new} | ({} if eos is None else {"eos_token_id": eos})
        spec = speculator(pick(DRAFTERS), fp64, pick(tuple(TREES)))
        same(fp64.target.generate(**inputs, **more, assistant=spec), fp64.target.generate(**inputs, **more))
