"""The ways in: what `assistant=` may be, transformers' own door, attached defaults, the patch and its removal."""

from __future__ import annotations

import inspect
import logging
import os
import subprocess
import sys
import textwrap
from typing import Any

import pytest
import torch
from generate_tools import Calls, Hostile, Models, prompt, same, speculator, tiny
from transformers import GenerationMixin, TextGenerationPipeline

import specplug
import specplug_hf
from specplug import OptionError, Speculator, UnknownNameError
from specplug_hf import patch

CALL = {"max_new_tokens": 12}


@pytest.fixture
def expected(fp64: Models) -> Any:
    return fp64.target.generate(**prompt(3, "left"), **CALL)


# --- what assistant= may be


@pytest.mark.parametrize("kind", [
    "module", "Speculator", "name", "name with options", "none", "self", "model", "drafter object", "module again",
])  # fmt: skip
def test_what_assistant_may_be(fp64: Models, expected: Any, kind: str):
    assistant: Any = {
        "module": specplug, "module again": specplug, "Speculator": Speculator(), "name": "prompt_lookup",
        "name with options": "prompt_lookup:ngram=4", "none": "none", "self": "self", "model": fp64.draft,
        "drafter object": Hostile(),
    }[kind]  # fmt: skip
    before = specplug.last_stats()
    same(fp64.target.generate(**prompt(3, "left"), **CALL, assistant=assistant), expected)
    # the first token of each row is the prefill's; the others come in rounds
    if assistant is specplug:
        assert specplug.last_stats() is not before
        assert specplug.last_stats().emitted == 3 * (CALL["max_new_tokens"] - 1)
    if isinstance(assistant, Speculator):
        assert assistant.stats.emitted == 3 * (CALL["max_new_tokens"] - 1)


def test_assistant_none_is_plain(fp64: Models, expected: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(patch, "_speculate", None)
    same(fp64.target.generate(**prompt(3, "left"), **CALL, assistant=None), expected)


@pytest.mark.parametrize(("wrong", "error", "words"), [
    (3, OptionError, "int"), (object(), OptionError, "object"), (torch, OptionError, "module 'torch'"),
    ("promt_lookup", UnknownNameError, "prompt_lookup"), ("prompt_lookup:ngrm=4", UnknownNameError, "ngram"),
    ("prompt_lookup:ngram=many", OptionError, "whole number"), ("model", OptionError, "draft_model"),
    (Hostile, OptionError, "type"), ("", UnknownNameError, "Known"), (True, OptionError, "bool"),
])  # fmt: skip
def test_a_wrong_assistant_is_named(fp64: Models, wrong: Any, error: type, words: str):
    with Calls(fp64.target) as calls, pytest.raises(error, match=words):
        fp64.target.generate(**prompt(1), **CALL, assistant=wrong)
    assert calls.count == 0


def test_names_and_drafts_keep_what_they_have_learnt(fp64: Models):
    from specplug_hf.assistant import speculator_of

    assert speculator_of("prompt_lookup") is speculator_of("prompt_lookup")
    assert speculator_of(fp64.draft)._memory is speculator_of(fp64.draft)._memory
    assert speculator_of(fp64.draft)._memory is not speculator_of(fp64.stranger)._memory


def test_statistics_of_the_last_call(fp64: Models):
    spec = speculator("self", fp64, "chain")
    fp64.target.generate(**prompt(3, "left"), **CALL, assistant=spec)
    stats = spec.stats
    assert stats.emitted == sum(stats.emitted_by_row.values()) == 33
    assert stats.accepted + stats.row_rounds == stats.emitted
    assert stats.acceptance_rate > 0.8 and stats.seconds_prefill > 0
    fp64.target.generate(**prompt(1), **CALL, assistant=spec)
    assert spec.stats is not stats and spec.stats.emitted == 11


# --- transformers' own door


def test_custom_generate(fp64: Models, expected: Any, monkeypatch: pytest.MonkeyPatch):
    spec = speculator("self", fp64)
    same(fp64.target.generate(**prompt(3, "left"), **CALL, custom_generate=specplug_hf.generate), expected)
    same(
        fp64.target.generate(**prompt(3, "left"), **CALL, custom_generate=specplug_hf.generate, assistant=spec),
        expected,
    )
    assert spec.stats.emitted == 33


def test_the_door_is_a_function_and_not_a_module():
    import specplug_hf.patch  # imports every module of the adapter

    assert callable(specplug_hf.generate) and inspect.isfunction(specplug_hf.generate)


def test_custom_generate_without_the_patch(fp64: Models, expected: Any):
    specplug_hf.uninstall()
    try:
        spec = speculator("self", fp64)
        call = {**prompt(3, "left"), **CALL, "custom_generate": specplug_hf.generate}
        same(fp64.target.generate(**call, assistant=spec), expected)
        assert spec.stats.emitted == 33
        same(fp64.target.generate(**call), expected)
    finally:
        specplug_hf.install()


def test_custom_generate_refuses_beams(fp64: Models):
    with Calls(fp64.target) as calls, pytest.raises(specplug.UnsupportedError, match="beam"):
        fp64.target.generate(**prompt(1), **CALL, num_beams=2, custom_generate=specplug_hf.generate)
    assert calls.count == 0


def test_two_ways_at_once_are_refused(fp64: Models):
    def other(model: Any, input_ids: Any, **_: Any) -> Any:
        raise AssertionError

    for more in ({"assistant_model": fp64.draft}, {"custom_generate": other}, {"custom_generate": "some/repo"}):
        with Calls(fp64.target) as calls, pytest.raises(OptionError, match="not both"):
            fp64.target.generate(**prompt(1), **CALL, **more, assistant="self")
        assert calls.count == 0


# --- attached defaults


def test_attach_for_a_block(fp64: Models, expected: Any):
    spec = speculator("self", fp64)
    with specplug.attach(fp64.target, spec) as inside:
        assert inside is spec
        same(fp64.target.generate(**prompt(3, "left"), **CALL), expected)
        assert spec.stats.emitted == 33
    spec.stats = None
    same(fp64.target.generate(**prompt(3, "left"), **CALL), expected)
    assert spec.stats is None


def test_attach_ends_with_an_exception(fp64: Models):
    with pytest.raises(RuntimeError, match="mine"), specplug.attach(fp64.target, "self"):
        raise RuntimeError("mine")
    assert not patch._attached


def test_attach_for_good_detach_and_nesting(fp64: Models, expected: Any):
    outer, inner = speculator("self", fp64), speculator("none", fp64)
    attachment = specplug.attach(fp64.target, outer)
    try:
        with specplug.attach(fp64.target, inner):
            fp64.target.generate(**prompt(1), **CALL)
            assert inner.stats.emitted and not outer.stats.emitted
        fp64.target.generate(**prompt(1), **CALL)
        assert outer.stats.emitted
    finally:
        attachment.detach()
        attachment.detach()
    assert not patch._attached


def test_a_call_may_choose_otherwise_than_the_default(fp64: Models, expected: Any):
    spec = speculator("self", fp64)
    inputs = prompt(1)
    plain = fp64.target.generate(**inputs, **CALL)
    with specplug.attach(fp64.target, spec):
        same(fp64.target.generate(**inputs, **CALL, assistant=None), plain)
        same(fp64.target.generate(**inputs, **CALL, assistant="none"), plain)
        same(fp64.target.generate(**inputs, **CALL, assistant_model=fp64.draft), plain)
        same(fp64.target.generate(**inputs, **CALL, prompt_lookup_num_tokens=3), plain)
    assert not spec.stats.emitted


@pytest.mark.parametrize("beams", [{"num_beams": 3}, {"num_beams": 2, "do_sample": True}, {"use_cache": False}])
def test_what_a_default_cannot_serve_is_generated_plainly(
    fp64: Models, beams: dict[str, Any], caplog: pytest.LogCaptureFixture
):
    torch.manual_seed(1)
    plain = fp64.target.generate(**prompt(2, "left"), **CALL, **beams)
    with specplug.attach(fp64.target, "self"), caplog.at_level(logging.WARNING, logger="specplug_hf"):
        torch.manual_seed(1)
        same(fp64.target.generate(**prompt(2, "left"), **CALL, **beams), plain)
    assert [record for record in caplog.records if "plain generation" in record.message]


def test_a_streamer_of_a_call_that_falls_back_sees_everything_once(fp64: Models):
    from test_generate_endings import Recorder

    plain, ours = Recorder(), Recorder()
    fp64.target.generate(**prompt(1), **CALL, use_cache=False, streamer=plain)
    with specplug.attach(fp64.target, "self"):
        fp64.target.generate(**prompt(1), **CALL, use_cache=False, streamer=ours)
    assert ours.events == plain.events


def test_a_default_does_not_hide_plains_errors(fp64: Models):
    with specplug.attach(fp64.target, "self"):
        with pytest.raises(ValueError, match="trust_remote_code"):
            fp64.target.generate(**prompt(1), **CALL, penalty_alpha=0.6, top_k=4)
        with pytest.raises(ValueError, match="nonsense"):
            fp64.target.generate(**prompt(1), **CALL, nonsense=3)


def test_a_default_on_a_model_that_cannot_be_served(caplog: pytest.LogCaptureFixture):
    from transformers import MambaConfig, MambaForCausalLM

    model = MambaForCausalLM(MambaConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, state_size=4)).eval()
    inputs = prompt(1, vocab=50)
    plain = model.generate(**inputs, max_new_tokens=4)
    with specplug.attach(model, "self"), caplog.at_level(logging.WARNING, logger="specplug_hf"):
        same(model.generate(**inputs, max_new_tokens=4), plain)
    assert "plain generation" in caplog.text


def test_errors_of_ones_own_do_not_fall_back(fp64: Models):
    def broken(input_ids: Any, scores: Any, **_: Any) -> Any:
        raise specplug.UnsupportedError("mine")

    with specplug.attach(fp64.target, "self"), pytest.raises(specplug.UnsupportedError, match="mine"):
        fp64.target.generate(**prompt(1), **CALL, stopping_criteria=[broken])


def test_attach_says_what_it_cannot_attach_to():
    with pytest.raises(OptionError, match="Linear"):
        specplug.attach(torch.nn.Linear(2, 2), "self")


def test_attach_refuses_a_wrong_assistant_at_once(fp64: Models):
    with pytest.raises(OptionError, match="int"):
        specplug.attach(fp64.target, 7)
    assert not patch._attached


def test_an_attached_model_is_not_kept_alive():
    import gc
    import weakref

    model = tiny()
    model.generate(**prompt(1), max_new_tokens=3, assistant="self")
    specplug.attach(model, "self")
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_a_draft_given_as_model_is_not_kept_alive(fp64: Models):
    import gc
    import weakref

    draft = tiny(seed=9)
    fp64.target.generate(**prompt(1), max_new_tokens=5, assistant=draft)
    gone = weakref.ref(draft)
    del draft
    gc.collect()
    assert gone() is None


def test_pipeline_with_an_attached_default(fp64: Models, tokenizer: Any):
    pipe = TextGenerationPipeline(model=fp64.target, tokenizer=tokenizer)
    texts = ["abcabcabc", "hello", "x y z x y"]
    call = {"max_new_tokens": 10, "do_sample": False, "batch_size": 3, "return_full_text": False}
    plain = pipe(texts, **call)
    spec = speculator("self", fp64)
    with specplug.attach(fp64.target, spec):
        assert pipe(texts, **call) == plain
    assert spec.stats.emitted == 27
    assert pipe(texts, **call, assistant="none") == plain


# --- the patch


def test_installing_twice_wraps_once():
    once = GenerationMixin.generate
    specplug_hf.install()
    assert GenerationMixin.generate is once
    original = getattr(once, patch._MARK)
    assert not hasattr(original, patch._MARK)


def test_uninstall_puts_the_original_back_and_install_wraps_again(fp64: Models):
    wrapped = GenerationMixin.generate
    original = getattr(wrapped, patch._MARK)
    specplug_hf.uninstall()
    try:
        assert GenerationMixin.generate is original
        specplug_hf.uninstall()
        assert GenerationMixin.generate is original
        with pytest.raises(ValueError, match="assistant"):
            fp64.target.generate(**prompt(1), **CALL, assistant="self")
    finally:
        specplug_hf.install()
    fp64.target.generate(**prompt(1), **CALL, assistant="self")


def test_the_signature_and_the_documentation_are_kept():
    wrapped = GenerationMixin.generate
    original = getattr(wrapped, patch._MARK)
    assert inspect.signature(wrapped) == inspect.signature(original)
    assert wrapped.__doc__ == original.__doc__ and wrapped.__name__ == "generate"


def test_plain_calls_run_no_code_of_ours(fp64: Models, expected: Any):
    ours: set[str] = set()

    def trace(frame: Any, event: str, _: Any) -> None:
        if event == "call" and ("specplug" in frame.f_globals.get("__name__", "")):
            ours.add(f"{frame.f_globals['__name__']}.{frame.f_code.co_name}")

    sys.setprofile(trace)
    try:
        out = fp64.target.generate(**prompt(3, "left"), **CALL)
    finally:
        sys.setprofile(None)
    same(out, expected)
    assert ours == {"specplug_hf.patch.generate"}


def test_a_class_that_overrides_generate_is_not_broken(fp64: Models, expected: Any):
    from transformers import LlamaForCausalLM

    class Own(LlamaForCausalLM):
        def generate(self, inputs: Any = None, twice: bool = False, **kwargs: Any) -> Any:
            out = super().generate(inputs, **kwargs)
            return torch.cat([out, out]) if twice else out

    torch.manual_seed(0)
    model = Own(fp64.target.config).to(torch.float64).eval()
    model.load_state_dict(fp64.target.state_dict())
    model.generation_config = fp64.target.generation_config
    inputs = prompt(3, "left")
    same(model.generate(**inputs, **CALL), expected)
    same(model.generate(**inputs, **CALL, twice=True, assistant="self"), torch.cat([expected, expected]))


LATE = ("transformers", "transformers.generation.utils", "specplug_hf", "specplug_hf.patch", "specplug_hf.serving")


@pytest.mark.parametrize(
    "first", ["specplug", "specplug_hf.completion", *(pytest.param(name, marks=pytest.mark.slow) for name in LATE)]
)
def test_either_may_be_imported_first(first: str):
    code = f"""
        import {first}
        import sys
        if {first!r} in ("specplug", "specplug_hf"):
            assert "transformers" not in sys.modules and "specplug_hf.patch" not in sys.modules
        import specplug, transformers, torch
        from transformers import LlamaConfig, LlamaForCausalLM
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(vocab_size=20, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                                             num_attention_heads=2, num_key_value_heads=1, eos_token_id=None)).eval()
        ids = torch.tensor([[3, 4, 5, 3, 4]])
        plain = model.generate(ids, max_new_tokens=5, pad_token_id=0)
        ours = model.generate(ids, max_new_tokens=5, pad_token_id=0, assistant=specplug)
        assert plain.tolist() == ours.tolist()
        assert specplug.last_stats().emitted == 4
        print("fine")
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, env=environment, check=False
    )
    assert done.stdout.strip().endswith("fine"), done.stderr
