"""What is refused: by one error that names cause and remedy, before the model has run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from generate_tools import VOCAB, Calls, Models, prompt, same, speculator, tiny
from transformers import DynamicCache, StaticCache

from specplug import Drafter, Need, OptionError, SpecplugError, Speculator, UnknownNameError, UnsupportedError

NEW = 6


def refused(model: Any, words: str, error: type = UnsupportedError, rows: int = 1, **call: Any) -> None:
    """`model.generate(**call)` raises `error` saying `words` (a pattern), and no forward of any module has run."""
    call = {**prompt(rows, vocab=min(VOCAB, 40)), "max_new_tokens": NEW, "assistant": "self"} | call
    with Calls(*model.modules()) as calls, pytest.raises(error, match=words) as raised:
        model.generate(**call)
    assert isinstance(raised.value, SpecplugError)
    assert calls.count == 0


@pytest.mark.parametrize(("call", "words"), [
    ({"num_beams": 3}, "beam search.*num_beams=1"),
    ({"num_beams": 4, "num_beam_groups": 1, "do_sample": True}, "beam"),
    ({"penalty_alpha": 0.6, "top_k": 4}, "contrastive.*penalty_alpha"),
    ({"dola_layers": "low"}, "DoLa"),
    ({"use_cache": False}, "use_cache=False.*cache"),
    ({"prompt_lookup_num_tokens": 3}, "assistant='prompt_lookup'"),
    ({"assistant_early_exit": 1}, "assistant_early_exit"),
    ({"cache_implementation": "offloaded"}, "offloaded.*leave it out"),
    ({"cache_implementation": "paged"}, "paged.*leave it out"),
    ({"synced_gpus": True}, "synced_gpus"),
    ({"guidance_scale": 2.0}, "guidance_scale.*[Ll]eave it out"),
    ({"max_new_tokens": 600}, "611 tokens.*512 positions.*max_new_tokens"),
    ({"input_ids": torch.zeros((1, 0), dtype=torch.int64), "attention_mask": None}, "empty prompt.*one token"),
])  # fmt: skip
def test_requests(fp64: Models, call: dict[str, Any], words: str):
    if "num_beam_groups" in call:
        call = {k: v for k, v in call.items() if k != "num_beam_groups"}
    refused(fp64.target, words, **call)


def test_an_assistant_beside_transformers_own(fp64: Models):
    refused(fp64.target, "not both", OptionError, assistant_model=fp64.draft)


def test_a_prompt_of_no_tokens_and_no_start_is_refused_too(fp64: Models):
    """Plain starts from the bos token when nothing is given: so do we."""
    plain = fp64.target.generate(max_new_tokens=NEW)
    same(fp64.target.generate(max_new_tokens=NEW, assistant="self"), plain)


@pytest.mark.parametrize("past", [3, 9])
@pytest.mark.parametrize("only_new", [False, True])
def test_positions_are_counted_with_a_cache_passed_in(past: int, only_new: bool):
    model = tiny(max_position_embeddings=20)
    inputs = prompt(1, length=12)
    cache = DynamicCache(config=model.config)
    model(input_ids=inputs["input_ids"][:, :past], past_key_values=cache)
    call = dict(inputs, past_key_values=cache)
    if only_new:
        call["input_ids"] = inputs["input_ids"][:, past:]
    refused(model, "21 tokens.*20 positions", **call, max_new_tokens=9)
    assert model.generate(**call, max_new_tokens=8, assistant="self").shape[1] == (12 - past * only_new) + 8


# --- models


def mamba() -> Any:
    from transformers import MambaConfig, MambaForCausalLM

    return MambaForCausalLM(MambaConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1, state_size=4)).eval()


def t5() -> Any:
    from transformers import T5Config, T5ForConditionalGeneration

    return T5ForConditionalGeneration(
        T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0)
    ).eval()


def bloom() -> Any:
    from transformers import BloomConfig, BloomForCausalLM

    return BloomForCausalLM(BloomConfig(vocab_size=40, hidden_size=16, n_layer=1, n_head=2)).eval()


@pytest.mark.parametrize(("make", "words"), [
    (mamba, "recurrent.*without assistant="), (t5, "encoder-decoder.*decoder-only"), (bloom, "position_ids"),
])  # fmt: skip
@pytest.mark.parametrize("role", ["target", "draft"])
def test_models(make: Any, words: str, role: str):
    if role == "target":
        refused(make(), words)
    else:
        target, draft = tiny(vocab=40), make()
        spec = Speculator(drafter="model", draft_model=draft, controller="fixed")
        with Calls(draft) as calls:
            refused(target, f"draft .*{words}".replace(".*without assistant=", ""), assistant=spec)
        assert calls.count == 0


@pytest.mark.parametrize("implementation", ["flash_attention_2", "flex_attention"])
@pytest.mark.parametrize("role", ["target", "draft"])
def test_attention_that_drops_the_mask(implementation: str, role: str, monkeypatch: pytest.MonkeyPatch):
    model, other = tiny(), tiny(seed=3)
    monkeypatch.setattr(model.config, "_attn_implementation_internal", implementation)
    monkeypatch.setattr(type(model), "_supports_attention_backend", False)
    if role == "target":
        refused(model, f"{implementation}.*sdpa")
    else:
        refused(other, f"draft.*{implementation}.*sdpa", assistant=Speculator(drafter="model", draft_model=model))


@pytest.mark.slow  # transformers compiles flex attention for the prompt
def test_flex_attention_is_replaced_where_the_model_takes_a_registered_one():
    model = tiny(dtype="float32")
    plain = model.generate(**prompt(2), max_new_tokens=NEW)
    model.config._attn_implementation_internal = "flex_attention"
    try:
        ours = model.generate(**prompt(2), max_new_tokens=NEW, assistant="self")
    except UnsupportedError as error:
        assert "flex_attention" in str(error)  # noqa: PT017
    else:
        same(ours, plain)
    assert model.config._attn_implementation == "flex_attention"


@pytest.mark.parametrize("kind", ["module", "attention"])
@pytest.mark.parametrize("role", ["target", "draft"])
def test_dropout_in_training_mode(kind: str, role: str):
    if kind == "attention":
        model = tiny(attention_dropout=0.1)
    else:
        from transformers import GPT2Config, GPT2LMHeadModel

        model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, n_embd=16, n_layer=1, n_head=2, n_positions=64))
    model.train()
    if role == "target":
        refused(model, r"training mode.*eval\(\)")
        model.eval()
        model.generate(**prompt(1), max_new_tokens=3, pad_token_id=0, assistant="self")
    else:
        refused(tiny(), r"draft.*training mode.*eval\(\)", assistant=Speculator(drafter="model", draft_model=model))


def test_training_mode_without_dropout_is_served(fp64: Models):
    model = tiny().train()
    same(
        model.generate(**prompt(3, "left"), max_new_tokens=NEW, assistant="self"),
        fp64.target.generate(**prompt(3, "left"), max_new_tokens=NEW),
    )
    assert model.training


# --- drafts


@pytest.mark.parametrize("size", [50, 92, 105, 300])
def test_vocabularies_that_truly_differ(fp64: Models, size: int):
    draft = tiny(seed=2, vocab=size)
    spec = Speculator(drafter="model", draft_model=draft, controller="fixed")
    with Calls(draft) as calls:
        refused(fp64.target, f"97 and {size} tokens.*tokenizer", assistant=spec)
    assert calls.count == 0


@pytest.mark.parametrize("sampling", [False, True])
@pytest.mark.parametrize("size", [96, 98])
def test_vocabularies_that_differ_in_padding_are_served(fp64: Models, size: int, sampling: bool):
    draft = tiny(seed=2, vocab=size)
    with torch.no_grad():
        draft.lm_head.weight[90:] += 3  # a draft that would like its padding
    inputs = prompt(3, "left")
    call = {"max_new_tokens": NEW, "do_sample": sampling, **({"top_k": 1} if sampling else {})}
    spec = Speculator(drafter="model", draft_model=draft, controller="fixed", tree="kary:branch=3,depth=2")
    same(fp64.target.generate(**inputs, **call, assistant=spec), fp64.target.generate(**inputs, max_new_tokens=NEW))


def test_a_draft_with_fewer_positions(fp64: Models):
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCAB, n_embd=16, n_layer=1, n_head=2, n_positions=16, bos_token_id=1, eos_token_id=2
    )
    draft = GPT2LMHeadModel(config).eval()
    spec = Speculator(drafter="model", draft_model=draft, controller="fixed")
    refused(fp64.target, "draft.*17 tokens.*16 positions", assistant=spec, max_new_tokens=6)
    assert fp64.target.generate(**prompt(1), max_new_tokens=5, assistant=spec).shape[1] == 16


def test_what_is_no_draft(fp64: Models, tmp_path: Any):
    refused(fp64.target, "PreTrainedModel or a path, got Linear", OptionError,
            assistant=Speculator(drafter="model", draft_model=torch.nn.Linear(2, 2)))  # fmt: skip
    refused(fp64.target, "Cannot load the draft", OptionError,
            assistant=Speculator(drafter="model", draft_model=tmp_path / "nothing"))  # fmt: skip


class NeedsMore(Drafter):
    needs = frozenset({Need.TOKENIZER})


def test_a_drafter_whose_need_cannot_be_met(fp64: Models):
    refused(fp64.target, "NeedsMore.*tokenizer.*another drafter", assistant=Speculator(drafter=NeedsMore()))


def test_a_tree_wider_than_the_vocabulary():
    spec = Speculator(drafter="self", tree="kary:branch=30,depth=1", controller="fixed")
    model = tiny(vocab=24, eos_token_id=None)
    inputs = prompt(1, vocab=24)
    with Calls(model) as calls, pytest.raises(OptionError, match="30 children.*24 tokens"):
        model.generate(**inputs, max_new_tokens=NEW, assistant=spec)
    assert calls.count == 0


# --- names and options


@pytest.mark.parametrize(("options", "words"), [
    ({"drafter": "slef"}, "'self'"), ({"kv_policy": "streamin"}, "'streaming'"), ({"tree": "sequoya"}, "'sequoia'"),
    ({"controller": "fixd"}, "'fixed'"), ({"tree": "chain:lenght=3"}, "'length'"),
    ({"kv_policy": "streaming:windw=3"}, "'window'"),
])  # fmt: skip
def test_unknown_names_and_options(options: dict[str, str], words: str):
    with pytest.raises(UnknownNameError, match=f"Did you mean {words}.*Known: "):
        Speculator(**options)


@pytest.mark.parametrize(("options", "words"), [
    ({"kv_policy": "streaming:window=0"}, "window=0.*at least 1"), ({"kv_policy": "streaming:sink=-1"}, "sink"),
    ({"drafter": 3}, "int"), ({"tree": object()}, "object"), ({"kernel": 3}, "int"),
    ({"drafter": "self", "draft_model": object()}, "draft_model"), ({"drafter": "model"}, "draft_model"),
])  # fmt: skip
def test_options_that_cannot_be(options: dict[str, Any], words: str):
    with pytest.raises(OptionError, match=words):
        Speculator(**options)


def test_an_unknown_kernel(fp64: Models):
    with Calls(fp64.target) as calls, pytest.raises(SpecplugError, match="kernel.*nonsense|nonsense.*kernel"):
        fp64.target.generate(**prompt(1), max_new_tokens=3, assistant=Speculator(drafter="self", kernel="nonsense"))
    assert calls.count == 0


# --- caches


def test_caches_that_cannot_be_rolled_back(fp64: Models):
    model = fp64.target
    refused(model, "StaticCache.*DynamicCache", past_key_values=StaticCache(config=model.config, max_cache_len=40))
    refused(model, "offloaded.*DynamicCache", past_key_values=offloaded(model))


def offloaded(model: Any) -> Any:
    cache = DynamicCache(config=model.config)
    cache.offloading = True
    return cache


@pytest.mark.parametrize("name", ["static", "dynamic"])
def test_a_named_cache_implementation_is_served(fp64: Models, name: str):
    call = {**prompt(3, "left"), "max_new_tokens": NEW, "cache_implementation": name}
    same(fp64.target.generate(**call, assistant=speculator("model", fp64)), fp64.target.generate(**call))


def test_a_quantised_cache_is_refused_by_us_or_by_transformers_where_nothing_quantises(fp64: Models):
    with Calls(fp64.target) as calls, pytest.raises((UnsupportedError, ImportError), match="quant"):
        fp64.target.generate(**prompt(1), max_new_tokens=NEW, cache_implementation="quantized", assistant="self")
    assert calls.count == 0
