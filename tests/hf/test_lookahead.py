"""`lookahead` in transformers: plain's tokens, whatever the batch; and that the target's own n-grams are accepted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from generate_tools import Models, prompt, same, tiny

from specplug import Speculator
from specplug.drafters.lookahead import Lookahead

NEW = 40
SMALL = dict(window=3, ngram=3, guesses=2)


def lookahead(tree: str = "auto", controller: str = "fixed", **options: int) -> Speculator:
    return Speculator(drafter=Lookahead(**options), tree=tree, controller=controller)


def plain(models: Models, rows: int, padding: str) -> Any:
    key = ("lookahead", rows, padding)
    if key not in models.expected:
        models.expected[key] = models.target.generate(**prompt(rows, padding), max_new_tokens=NEW)
    return models.expected[key]


@pytest.mark.parametrize("options", [{}, SMALL, dict(window=1, ngram=2, guesses=1)], ids=["default", "small", "least"])
@pytest.mark.parametrize(("rows", "padding"), [(1, "none"), (3, "none"), (3, "left"), (3, "right"), (3, "holes")])
def test_greedy_says_what_plain_says(fp64: Models, rows: int, padding: str, options: dict[str, int]) -> None:
    ours = fp64.target.generate(**prompt(rows, padding), max_new_tokens=NEW, assistant=lookahead(**options))
    same(ours, plain(fp64, rows, padding))


@pytest.mark.parametrize("tree", ["chain:length=3", "kary:branch=3,depth=3", "sequoia:size=12,depth=5"])
def test_within_other_trees(fp64: Models, tree: str) -> None:
    ours = fp64.target.generate(**prompt(3, "left"), max_new_tokens=NEW, assistant=lookahead(tree))
    same(ours, plain(fp64, 3, "left"))


def test_when_it_is_the_planner_s_choice(fp64: Models) -> None:
    spec = lookahead(controller="goodput")
    for _ in range(2):
        same(fp64.target.generate(**prompt(3, "left"), max_new_tokens=NEW, assistant=spec), plain(fp64, 3, "left"))


@pytest.mark.parametrize("rows", [1, 3])
def test_a_model_that_writes_in_circles_is_found_out(rows: int) -> None:
    model = tiny(scale=0.06)
    inputs = prompt(rows, "left") | {"input_ids": torch.arange(2, 2 + rows * 11).view(rows, 11)}  # nothing repeats yet
    expected = model.generate(**inputs, max_new_tokens=80)
    spec = lookahead()
    same(model.generate(**inputs, max_new_tokens=80, assistant=spec), expected)
    assert spec.stats.accepted_length > 2.0


@pytest.mark.parametrize("end", [[7], [3, 50, 9]])
def test_rows_that_end_early(fp64: Models, end: list[int]) -> None:
    inputs = prompt(4, "left")
    expected = fp64.target.generate(**inputs, max_new_tokens=NEW, eos_token_id=end)
    same(fp64.target.generate(**inputs, max_new_tokens=NEW, eos_token_id=end, assistant=lookahead(**SMALL)), expected)


def test_a_sampled_row_draws_alone_what_it_draws_in_a_batch(fp64: Models) -> None:
    """Its window and its n-grams are its own."""
    inputs, seeds = prompt(3, "left"), [3, 1, 4]
    options: dict[str, Any] = dict(max_new_tokens=NEW, do_sample=True, temperature=0.4, top_k=0)

    def sampled(rows: slice) -> torch.Tensor:
        spec = Speculator(drafter=Lookahead(**SMALL), controller="fixed", seed=seeds[rows])
        mine = {name: value[rows] for name, value in inputs.items()}
        return fp64.target.generate(**mine, **options, assistant=spec)

    together = sampled(slice(0, 3))
    for row in range(3):
        same(sampled(slice(row, row + 1)), together[row : row + 1])
