"""The built-in pair generates through the compiled attention what it generates without us."""

from __future__ import annotations

import pytest
import torch
from native_tools import skip_without_library
from torch import Tensor

import specplug
from specplug_hf.demo import load_pair, prompt
from specplug_kernels import dispatch

NEW_TOKENS = 40


@pytest.fixture(scope="module")
def pair():
    return load_pair()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Nodes of every call that the compiled attention serves."""
    skip_without_library()
    seen: list[int] = []
    native = dispatch._BACKENDS["native"]

    def noted(query: Tensor, *rest: object) -> Tensor:
        seen.append(query.shape[2])
        return native(query, *rest)

    monkeypatch.setitem(dispatch._BACKENDS, "native", noted)
    return seen


def ragged_prompts() -> dict[str, Tensor]:
    """Three prompts of different lengths, padded on the left."""
    lengths = (130, 70, 101)
    ids, mask = torch.zeros(3, 130, dtype=torch.int64), torch.zeros(3, 130, dtype=torch.int64)
    for row, length in enumerate(lengths):
        ids[row, -length:], mask[row, -length:] = prompt(length, row)[0], 1
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize(
    ("setup", "largest_tree"),
    [
        ({"drafter": "model", "tree": "kary:branch=2,depth=3"}, 15),
        ({"drafter": "self", "kv_policy": "streaming:sink=4,window=60", "tree": "chain:length=3"}, 4),
        ({"drafter": "none"}, 1),
    ],
    ids=["model", "self", "none"],
)
def test_greedy_output_is_plain_output(setup: dict[str, str], largest_tree: int, pair, calls: list[int]) -> None:
    target, draft, _ = pair
    given = ragged_prompts() | {"max_new_tokens": NEW_TOKENS, "do_sample": False}
    plain = target.generate(**given)
    assert not calls
    draft_model = {"draft_model": draft} if setup["drafter"] == "model" else {}
    spec = specplug.Speculator(**setup, **draft_model, controller="fixed", kernel="native")
    assert torch.equal(target.generate(**given, assistant=spec), plain)
    assert largest_tree in calls
