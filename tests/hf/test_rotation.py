"""Keys read as if they stood elsewhere: against the models' own keys there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from families import tiny_model
from generate_tools import Models, prompt, same
from torch import Tensor
from transformers import DynamicCache

from specplug import Speculator, UnsupportedError
from specplug.kv_policies import KVPolicy, KVSelection
from specplug.kv_policies.base import first_positions
from specplug.needs import Need
from specplug_hf.generation import prepare
from specplug_hf.prefill import layer_kv
from specplug_hf.rotation import Layout, rotation_of


@dataclass(frozen=True)
class Near(KVPolicy):
    """Two sinks, read as if they were at most `reach` before the root."""

    reach: int = 6
    needs = frozenset({Need.DISTANCES})

    @property
    def budget(self) -> int:
        return 7

    def select(self, lengths: Tensor) -> KVSelection:
        return KVSelection(first_positions(2, lengths.device), 5, self.reach)


def keys_at(model: Any, positions: list[int]) -> list[Tensor]:
    """Every layer's key of one token alone at each of `positions`: [n, H, 1, D]."""
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(
            input_ids=torch.full((len(positions), 1), 5), position_ids=torch.tensor(positions)[:, None],
            past_key_values=cache,
        )  # fmt: skip
    return [keys for keys, _ in layer_kv(cache)]


@pytest.mark.parametrize("name", ["llama", "qwen3", "stablelm", "cohere", "glm4", "smollm3", "olmo2", "gpt_neox"])
def test_turned_keys_are_the_models_own(name: str) -> None:
    model = tiny_model(name)
    rotation = rotation_of(model)
    assert len(rotation.layouts) == model.config.num_hidden_layers
    here, there = keys_at(model, [3, 11]), keys_at(model, [13, 12])
    for layer, (near, far) in enumerate(zip(here, there, strict=True)):
        turned = rotation.turned(layer, near, torch.tensor([[10], [1]]))
        assert torch.allclose(turned.float(), far.float(), atol=1e-4)
    assert any(layout is not Layout.NONE for layout in rotation.layouts)


def test_sinks_stand_at_most_so_far_before_the_root(fp64: Models) -> None:
    """Every round: the draft's sinks are the target's, turned by what is over the reach; the output is plain."""
    inputs, rounds = prompt(3, "left", 12), 0
    spec = Speculator(drafter="self", kv_policy=Near(), tree="chain:length=3", controller="fixed")
    rotation = rotation_of(fp64.target)

    def run(model: Any, input_ids: Tensor, **rest: Any) -> Any:
        nonlocal rounds
        generation = prepare(model, input_ids, spec, **rest)
        for _ in generation.rounds():
            sparse = generation.host.runners[0]._sparse
            if not generation.host.rows or sparse is None:
                continue
            shifts = torch.tensor(sparse.copied)[:, None] - torch.arange(2) - 6
            assert bool((shifts > 0).all())
            for layer in range(generation.host.store.num_layers):
                keys, values = generation.host.store.columns(layer, 2)
                expected = rotation.turned(layer, keys, shifts)
                assert torch.allclose(sparse.store.keys[layer][:, :, :2], expected, atol=1e-9)
                assert torch.equal(sparse.store.values[layer][:, :, :2], values)
                assert not torch.allclose(expected, keys)
            rounds += 1
        return generation.finish()

    call = {"max_new_tokens": 15, "eos_token_id": None}
    same(fp64.target.generate(**inputs, **call, custom_generate=run), fp64.target.generate(**inputs, **call))
    assert rounds > 2


@pytest.mark.parametrize("drafter", ["self", "model"])
@pytest.mark.parametrize("kernel", ["auto", "paged"])
def test_the_output_is_plain(fp64: Models, drafter: str, kernel: str) -> None:
    inputs = prompt(3, "left", 12)
    more = {"draft_model": fp64.draft} if drafter == "model" else {}
    spec = Speculator(
        drafter=drafter, kv_policy=Near(), tree="chain:length=3", controller="fixed", kernel=kernel, **more
    )
    plain = fp64.target.generate(**inputs, max_new_tokens=15)
    same(fp64.target.generate(**inputs, max_new_tokens=15, assistant=spec), plain)


@pytest.mark.parametrize(("name", "cause"), [("gpt2", "no rotary embedding"), ("gemma3_text", "several")])
def test_models_without_one_rotation_are_refused_by_name(name: str, cause: str) -> None:
    model = tiny_model(name)
    with pytest.raises(UnsupportedError, match=cause):
        rotation_of(model)
