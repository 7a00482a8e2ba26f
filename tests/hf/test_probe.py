"""The look at unknown architectures: it must see models that drop masks or count positions, and cost the others little."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import prompts, tiny_model
from transformers import LlamaForCausalLM, PreTrainedModel

from specplug import Speculator, UnsupportedError
from specplug_hf import probe
from specplug_hf.draft import node_forward
from specplug_hf.probe import check_trees, is_verified, tree_error

SETUP = dict(drafter="self", kv_policy="full", tree="kary:branch=2,depth=2", controller="fixed")


class Faithful(LlamaForCausalLM):
    """Somebody's own class that does nothing wrong."""


class _Altered(LlamaForCausalLM):
    def forward(  # type: ignore[override]
        self, input_ids: Any = None, past_key_values: Any = None, attention_mask: Any = None, position_ids: Any = None,
        **kwargs: Any,
    ) -> Any:  # fmt: skip
        done = 0 if past_key_values is None else past_key_values.get_seq_length()
        mask, positions = self.alter(done, input_ids.shape[1], attention_mask, position_ids)
        return super().forward(
            input_ids, past_key_values=past_key_values, attention_mask=mask, position_ids=positions, **kwargs
        )

    def alter(self, done: int, new: int, mask: Any, positions: Any) -> tuple[Any, Any]:
        """What is made of the mask and the positions of `new` tokens behind `done`."""
        raise NotImplementedError


class DropsMasks(_Altered):
    """A prompt apart, every token sees all that stands before it."""

    def alter(self, done: int, new: int, mask: Any, positions: Any) -> tuple[Any, Any]:
        if done and new > 1:
            mask = torch.full((1, 1, new, done + new), torch.finfo(self.dtype).min, dtype=self.dtype).triu(done + 1)
        return mask, positions


class CountsPositions(_Altered):
    """Takes position_ids and does not use them: every token stands behind the one before it in the cache."""

    def alter(self, done: int, new: int, mask: Any, positions: Any) -> tuple[Any, Any]:
        return mask, torch.arange(done, done + new)[None]


class Fails(_Altered):
    """Cannot read several tokens at once behind a cache."""

    def alter(self, done: int, new: int, mask: Any, positions: Any) -> tuple[Any, Any]:
        if done and new > 1:
            raise RuntimeError("one token at a time, please")
        return mask, positions


def of_class(cls: type[PreTrainedModel], dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    model = tiny_model("llama", dtype)
    model.__class__ = cls
    return model


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_faithful_model_passes(dtype: torch.dtype) -> None:
    model = of_class(Faithful, dtype)
    assert not is_verified(model)
    check_trees(model, node_forward(model))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("cls", "cause"),
    [(DropsMasks, "otherwise than its paths"), (CountsPositions, "otherwise than its paths"), (Fails, "one token")],
)
def test_a_model_that_cannot_is_refused_with_the_cause(
    cls: type[PreTrainedModel], cause: str, dtype: torch.dtype
) -> None:
    model = of_class(cls, dtype)
    for _ in range(2):  # the second time from memory
        with pytest.raises(UnsupportedError, match=f"{cls.__name__} .*{cause}"):
            model.generate(**prompts(96), max_new_tokens=4, assistant=Speculator(**SETUP))


def test_it_runs_once_and_not_at_all_for_verified_families(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def counted(model: PreTrainedModel, forward: Any) -> float:
        calls.append(type(model).__name__)
        return tree_error(model, forward)

    monkeypatch.setattr(probe, "tree_error", counted)
    known, unknown = tiny_model("llama"), of_class(Faithful)
    for model in (known, unknown, known, unknown):
        model.generate(**prompts(96), max_new_tokens=4, assistant=Speculator(**SETUP))
    assert calls == ["Faithful"]
    other = of_class(Faithful)
    other.generate(**prompts(96), max_new_tokens=4, assistant=Speculator(**SETUP))
    assert calls == ["Faithful"] * 2


def test_it_leaves_no_trace() -> None:
    model = of_class(Faithful)
    before = torch.random.get_rng_state()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    implementation = model.config._attn_implementation
    check_trees(model, node_forward(model))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert model.config._attn_implementation == implementation
    assert all(parameter.grad is None for parameter in model.parameters())


def test_it_does_not_keep_a_model_alive() -> None:
    model = of_class(Faithful)
    check_trees(model, node_forward(model))
    assert model in probe._causes
    count = len(probe._causes)
    del model
    import gc

    gc.collect()
    assert len(probe._causes) < count
