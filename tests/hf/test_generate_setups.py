"""Models and surroundings: dtypes, drafts of all kinds, embeddings, threads, PEFT, accelerate."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from generate_tools import VOCAB, Models, disturbed, prompt, same, same_cache, speculator, tiny

import specplug
from specplug import Speculator

NEW = 14


def served(model: Any, spec: Any, rows: int = 3, padding: str = "left", **call: Any) -> Any:
    """Ours equals plain; returns it."""
    inputs = prompt(rows, padding)
    plain = model.generate(**inputs, **({"max_new_tokens": NEW} | call))
    same(model.generate(**inputs, **({"max_new_tokens": NEW} | call), assistant=spec), plain)
    return plain


# --- half precision


def margins(model: Any, ours: Any, plain: Any, length: int) -> list[float]:
    """Where rows part: how far apart the two tokens' logits are, in units of rounding at their size (float32 model)."""
    exact = copy.deepcopy(model).float()
    found = []
    for a, b in zip(ours.tolist(), plain.tolist(), strict=True):
        parted = next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), None)
        if parted is not None:
            assert parted >= length
            with torch.no_grad():
                logits = exact(torch.tensor([b[:parted]])).logits[0, -1]
            unit = float(logits.abs().max()) * torch.finfo(model.dtype).eps
            found.append(float((logits[a[parted]] - logits[b[parted]]).abs()) / unit)
    return found


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("drafter", ["none", "model", "self-streaming"])
def test_half_precision_parts_only_where_two_logits_tie(dtype: str, drafter: str):
    target = tiny(dtype=dtype)
    models = Models(target, disturbed(target, 0.05), target)
    inputs = prompt(4)
    plain = target.generate(**inputs, max_new_tokens=NEW)
    ours = target.generate(**inputs, max_new_tokens=NEW, assistant=speculator(drafter, models))
    assert ours.shape == plain.shape and ours.dtype == plain.dtype
    found = margins(target, ours, plain, inputs["input_ids"].shape[1])
    print(f"{dtype} {drafter}: {len(found)} of 4 rows part, at margins of {found} roundings")
    assert all(margin < 8 for margin in found)
    assert len(found) < 4


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_scores_of_half_precision_are_float32_as_plains(dtype: str):
    target = tiny(dtype=dtype)
    call = {"max_new_tokens": 3, "return_dict_in_generate": True, "output_scores": True, "output_hidden_states": True}
    plain = target.generate(**prompt(2), **call)
    ours = target.generate(**prompt(2), **call, assistant=speculator("self", Models(target, target, target)))
    for field in ("scores", "hidden_states"):
        for a, b in zip(getattr(ours, field), getattr(plain, field), strict=True):
            pairs = [(a, b)] if field == "scores" else list(zip(a, b, strict=True))
            assert all(x.dtype == y.dtype and x.shape == y.shape for x, y in pairs)


# --- drafts


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("sampling", [False, True])
def test_a_draft_of_another_dtype(fp64: Models, dtype: str, sampling: bool):
    draft = copy.deepcopy(fp64.draft).to(getattr(torch, dtype))
    spec = Speculator(drafter="model", draft_model=draft, controller="fixed", tree="kary:branch=2,depth=3")
    served(fp64.target, spec, **({"do_sample": True, "top_k": 1} if sampling else {}))
    assert spec.stats.accepted_length > 1.2


def test_a_draft_given_as_a_path(fp32: Models, tmp_path: Any):
    fp32.draft.save_pretrained(tmp_path)
    for path in (tmp_path, str(tmp_path)):
        spec = Speculator(drafter="model", draft_model=path, controller="fixed", tree="chain:length=3")
        served(fp32.target, spec)
        assert spec.stats.accepted_length > 1.2


def test_a_path_to_a_draft_that_does_not_fit(fp32: Models, tmp_path: Any):
    tiny(vocab=50, dtype="float32").save_pretrained(tmp_path)
    with pytest.raises(specplug.UnsupportedError, match="97 and 50"):
        fp32.target.generate(**prompt(1), assistant=Speculator(drafter="model", draft_model=tmp_path))


def test_a_draft_of_another_architecture(fp64: Models):
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCAB, n_embd=16, n_layer=1, n_head=2, n_positions=128, bos_token_id=1, eos_token_id=2
    )
    served(fp64.target, Speculator(drafter="model", draft_model=GPT2LMHeadModel(config).eval(), controller="fixed"))


def test_the_target_as_its_own_draft(fp64: Models):
    spec = Speculator(drafter="model", draft_model=fp64.target, controller="fixed", tree="chain:length=4")
    served(fp64.target, spec)
    assert spec.stats.accepted_length > 3


# --- embeddings


@pytest.mark.parametrize("drafter", ["none", "model", "self-streaming", "prompt_lookup"])
@pytest.mark.parametrize("padding", ["none", "left"])
def test_embeddings_as_prompt(fp64: Models, drafter: str, padding: str):
    inputs = prompt(3, padding)
    call = {"inputs_embeds": fp64.target.get_input_embeddings()(inputs["input_ids"]).detach(),
            "attention_mask": inputs["attention_mask"], "max_new_tokens": NEW}  # fmt: skip
    plain = fp64.target.generate(**call)
    same(fp64.target.generate(**call, assistant=speculator(drafter, fp64)), plain)
    assert plain.shape == (3, NEW)


def test_embeddings_and_ids(fp64: Models):
    inputs = prompt(2)
    call = dict(inputs, inputs_embeds=fp64.target.get_input_embeddings()(inputs["input_ids"]).detach())
    plain = fp64.target.generate(**call, max_new_tokens=NEW)
    same(fp64.target.generate(**call, max_new_tokens=NEW, assistant=speculator("model", fp64)), plain)


def test_embeddings_with_fields_and_cache(fp64: Models):
    inputs = prompt(2)
    call = {"inputs_embeds": fp64.target.get_input_embeddings()(inputs["input_ids"]).detach(), "max_new_tokens": NEW,
            "return_dict_in_generate": True, "output_scores": True}  # fmt: skip
    plain = fp64.target.generate(**call)
    ours = fp64.target.generate(**call, assistant=speculator("model", fp64))
    same(ours.sequences, plain.sequences)
    same_cache(ours.past_key_values, plain.past_key_values, None)


@pytest.mark.parametrize("given", ["position_ids", "no mask", "ids on their own"])
def test_other_ways_to_give_a_prompt(fp64: Models, given: str):
    inputs = prompt(2)
    if given == "position_ids":
        call = dict(inputs, position_ids=torch.arange(11).expand(2, -1) + 3)
    else:
        call = {"input_ids": inputs["input_ids"]}
    plain = fp64.target.generate(**call, max_new_tokens=NEW)
    same(fp64.target.generate(**call, max_new_tokens=NEW, assistant=speculator("model", fp64)), plain)


# --- threads


def together(*jobs: Any) -> list[Any]:
    """Runs `jobs` at the same time; returns what they returned, or raises what they raised."""
    results: list[Any] = [None] * len(jobs)
    start = threading.Barrier(len(jobs))

    def run(place: int) -> None:
        start.wait()
        try:
            results[place] = jobs[place]()
        except BaseException as error:
            results[place] = error

    threads = [threading.Thread(target=run, args=(place,)) for place in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


@pytest.mark.parametrize("drafter", ["model", "self-streaming", "hostile"])
def test_one_speculator_in_several_threads(fp64: Models, drafter: str):
    spec = speculator(drafter, fp64)
    prompts = [prompt(2, "left", seed=seed) for seed in range(3)]
    plain = [fp64.target.generate(**inputs, max_new_tokens=30) for inputs in prompts]

    def job(inputs: Any) -> Any:
        return lambda: fp64.target.generate(**inputs, max_new_tokens=30, assistant=spec)

    for ours, expected in zip(together(*map(job, prompts)), plain, strict=True):
        same(ours, expected)
    assert spec.stats.emitted == 2 * 29  # one call's, whichever ended last
    assert fp64.target.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_plain_generation_in_another_thread(attention: str):
    model = tiny(dtype="float32", attention=attention)
    inputs, other = prompt(2, "left"), prompt(3, "left", seed=9)
    expected, plain = (model.generate(**each, max_new_tokens=40) for each in (inputs, other))
    spec = speculator("self", Models(model, model, model))
    results = together(
        lambda: [model.generate(**inputs, max_new_tokens=40, assistant=spec) for _ in range(4)],
        lambda: [model.generate(**other, max_new_tokens=40) for _ in range(4)],
    )
    for ours, theirs in zip(*results, strict=True):
        same(ours, expected)
        same(theirs, plain)
    assert model.config._attn_implementation == attention


def test_a_forward_finds_the_implementation_while_another_thread_puts_it_back(fp64: Models):
    """The names are taken out and put back under a lock: nobody may see our name without knowing what stood there."""
    from specplug_hf import attention

    swap = attention.AttentionSwap(fp64.target)
    seen: set[str] = set()
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            seen.add(attention.original_implementation(fp64.target.config))

    def swap_often() -> None:
        for _ in range(20000):
            swap._enter()
            swap._leave()
        stop.set()

    together(look, swap_often)
    assert seen == {"sdpa"}


# --- PEFT and accelerate


@pytest.fixture(scope="module")
def lora() -> Any:
    peft = pytest.importorskip("peft")
    model = tiny()
    wrapped = peft.get_peft_model(
        model, peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    )
    return wrapped.to(torch.float64).eval()


@pytest.mark.parametrize("drafter", ["none", "self", "model", "prompt_lookup"])
def test_a_peft_model_as_target(fp64: Models, lora: Any, drafter: str):
    adapted = served(lora, speculator(drafter, fp64))
    with lora.disable_adapter():
        assert served(lora, speculator(drafter, fp64)).tolist() != adapted.tolist()


def test_a_peft_models_base_as_draft(fp64: Models, lora: Any):
    served(fp64.target, Speculator(drafter="model", draft_model=lora.get_base_model(), controller="fixed"))


def test_a_peft_model_as_draft(fp64: Models, lora: Any):
    served(fp64.target, Speculator(drafter="model", draft_model=lora, controller="fixed", tree="chain:length=3"))
    served(fp64.target, lora)


def test_an_attached_peft_model(fp64: Models, lora: Any):
    spec = speculator("self", fp64)
    plain = lora.generate(**prompt(2), max_new_tokens=NEW)
    with specplug.attach(lora.get_base_model(), spec):
        same(lora.generate(**prompt(2), max_new_tokens=NEW), plain)
    assert spec.stats.emitted == 2 * (NEW - 1)


def test_attaching_to_the_wrapper_is_attaching_to_the_model_inside(fp64: Models, lora: Any):
    spec = speculator("self", fp64)
    with specplug.attach(lora, spec):
        lora.generate(**prompt(2), max_new_tokens=NEW)
    assert spec.stats.emitted == 2 * (NEW - 1)


@pytest.mark.parametrize("how", ["offload", "hooks", "disk"])
@pytest.mark.parametrize("drafter", ["none", "self-streaming", "model"])
def test_a_model_dispatched_by_accelerate(fp64: Models, how: str, drafter: str, tmp_path: Any):
    accelerate = pytest.importorskip("accelerate")
    model = copy.deepcopy(fp64.target)
    if how == "offload":
        model = accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    elif how == "disk":
        model = accelerate.disk_offload(model, str(tmp_path), execution_device=torch.device("cpu"))
    else:
        for layer in model.model.layers:
            hook = accelerate.hooks.AlignDevicesHook(execution_device="cpu", io_same_device=True)
            accelerate.hooks.add_hook_to_module(layer, hook)
    served(model, speculator(drafter, fp64), rows=2)


@pytest.mark.parametrize("policy", ["full", "streaming:sink=2,window=5"])
def test_a_draft_whose_weights_are_brought_for_each_forward(fp64: Models, policy: str):
    accelerate = pytest.importorskip("accelerate")
    draft = accelerate.cpu_offload(copy.deepcopy(fp64.draft), execution_device=torch.device("cpu"))
    assert draft.device.type == "meta"
    served(fp64.target, Speculator(drafter="model", draft_model=draft, controller="fixed", kv_policy=policy))


class Int8Linear(torch.nn.Module):
    """A linear layer of 8-bit weights, brought back to the input's precision for each forward."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        scale = linear.weight.abs().amax(1, keepdim=True) / 127
        self.register_buffer("scale", scale)
        self.register_buffer("weight", (linear.weight / scale).round().to(torch.int8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(x, self.weight.to(x.dtype) * self.scale.to(x.dtype))


@pytest.mark.parametrize("drafter", ["none", "self-streaming", "model"])
def test_a_quantised_model_keeps_working(fp64: Models, drafter: str):
    model = copy.deepcopy(fp64.target)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.up_proj, layer.mlp.down_proj = Int8Linear(layer.mlp.up_proj), Int8Linear(layer.mlp.down_proj)
            layer.self_attn.q_proj = Int8Linear(layer.self_attn.q_proj)
    served(model, speculator(drafter, fp64))
