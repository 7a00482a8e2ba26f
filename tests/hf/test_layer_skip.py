"""`layer_skip` in transformers: leaving sublayers out of this thread's forwards only, the drafts that come of it, and the search."""

from __future__ import annotations

import argparse
import copy
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from families import tiny_model
from generate_tools import Models, prompt, same, tiny, tiny_tokenizer
from torch import Tensor, nn
from transformers import DynamicCache

from specplug import OptionError, Speculator, UnsupportedError
from specplug.drafters.layer_skip import LayerSkip, evenly_spread
from specplug.host import SkippedLayers
from specplug.kv_policies import Streaming
from specplug_hf import skipping
from specplug_hf.bypass import Bypass
from specplug_hf.identity import name_of
from specplug_hf.skipping import LayerSkipping, check_layers, num_layers
from specplug_hf.training import layers_command, layers_trial
from specplug_hf.training.layers_search import search
from specplug_hf.training.layers_trial import BLOCK, LayerTrial, Score, Shares, measured_shares, predicted

NEW, LAYERS = 24, 5
SOME = SkippedLayers(attention=frozenset({1, 3}), mlp=frozenset({2, 3}))
IDS = torch.tensor([[5, 9, 14, 3, 77, 20, 31], [8, 8, 2, 41, 6, 90, 12]])


@pytest.fixture(scope="module")
def models() -> Models:
    """A target with layers to spare."""
    target = tiny(num_hidden_layers=LAYERS)
    return Models(target, None, None)


@pytest.fixture(autouse=True)
def _nothing_stays(models: Models) -> Iterator[None]:
    """Whatever happened, nothing stays in the shared target."""
    yield
    assert not [module for module in models.target.modules() if "forward" in module.__dict__ or module._forward_hooks]


def silenced(model: Any, skipped: SkippedLayers) -> Any:
    """A copy whose `skipped` sublayers add nothing, since the weights of their last products are zero."""
    copied = copy.deepcopy(model)
    layers = copied.get_decoder().layers
    with torch.no_grad():
        for parts, name, last in ((skipped.attention, "self_attn", ("o_proj", "dense")), (skipped.mlp, "mlp", ("down_proj", "fc2", "w2"))):  # fmt: skip
            for layer in parts:
                for path, parameter in getattr(layers[layer], name).named_parameters():
                    if any(piece in path for piece in last):
                        parameter.zero_()
    return copied


def logits_of(model: Any, ids: Tensor = IDS) -> Tensor:
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


# --- leaving out


@pytest.mark.parametrize(
    "family", ["llama", "gemma2", "gemma3_text", "qwen3", "olmo2", "mixtral", "phi", "cohere", "gpt_oss"]
)
def test_a_model_without_sublayers_is_one_whose_sublayers_add_nothing(family: str) -> None:
    model = tiny_model(family)
    skipped = SkippedLayers(frozenset({1}), frozenset({1, 2}))
    plain = logits_of(model)
    with LayerSkipping(model, skipped):
        ours = logits_of(model)
    torch.testing.assert_close(ours, logits_of(silenced(model, skipped)), atol=1e-6, rtol=1e-6)
    assert (ours - plain).abs().max() > 1e-3
    assert torch.equal(logits_of(model), plain)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
def test_families_with_other_names(family: str) -> None:
    """All sublayers out: what comes in goes out, so that the last norm and the head see the embeddings."""
    model = tiny_model(family)
    every = frozenset(range(num_layers(model)))
    with LayerSkipping(model, SkippedLayers(every, every)), torch.no_grad():
        hidden = model(input_ids=IDS, use_cache=False, output_hidden_states=True).hidden_states
    assert torch.equal(hidden[0], hidden[-2])


def test_nothing_left_out_is_the_model_itself(models: Models) -> None:
    with LayerSkipping(models.target, SkippedLayers()):
        assert torch.equal(logits_of(models.target), logits_of(models.target))
        inside = logits_of(models.target)
    assert torch.equal(inside, logits_of(models.target))


def test_an_attention_that_is_left_out_writes_nothing(models: Models) -> None:
    cache = DynamicCache()
    with LayerSkipping(models.target, SOME), torch.no_grad():
        models.target(input_ids=IDS, past_key_values=cache, use_cache=True)
    assert [cache.get_seq_length(layer) for layer in range(LAYERS)] == [7, 0, 7, 0, 7]


def test_another_thread_computes_as_ever(models: Models) -> None:
    plain, seen = logits_of(models.target), []
    with LayerSkipping(models.target, SOME):
        thread = threading.Thread(target=lambda: seen.append(logits_of(models.target)))
        thread.start()
        thread.join()
        assert not torch.equal(logits_of(models.target), plain)
    assert torch.equal(seen[0], plain)


def test_two_threads_leave_out_what_each_wants(models: Models) -> None:
    """One enters while the other is inside, and stays when it has left."""
    other = SkippedLayers(attention=frozenset({2, 3}))
    wanted, plain = [logits_of(silenced(models.target, skipped)) for skipped in (SOME, other)], logits_of(models.target)
    inside, left, found = threading.Event(), threading.Event(), []

    def second() -> None:
        with LayerSkipping(models.target, other):
            inside.set()
            left.wait()
            found.append(logits_of(models.target))

    thread = threading.Thread(target=second, daemon=True)  # a failure here must not leave it waiting
    with LayerSkipping(models.target, SOME):
        thread.start()
        inside.wait()
        torch.testing.assert_close(logits_of(models.target), wanted[0])
    assert torch.equal(logits_of(models.target), plain)
    left.set()
    thread.join()
    torch.testing.assert_close(found[0], wanted[1])
    assert torch.equal(logits_of(models.target), plain)


def test_contexts_within_each_other(models: Models) -> None:
    """The inner one counts, and the outer one again afterwards; one object may be entered twice."""
    outer, inner = LayerSkipping(models.target, SOME), LayerSkipping(models.target, SkippedLayers(mlp=frozenset({2})))
    with outer:
        before = logits_of(models.target)
        with inner:
            between = logits_of(models.target)
            with outer:
                assert torch.equal(logits_of(models.target), before)
        assert torch.equal(logits_of(models.target), before)
    torch.testing.assert_close(between, logits_of(silenced(models.target, SkippedLayers(mlp=frozenset({2})))))


def test_an_exception_leaves_the_model_as_it_was(models: Models) -> None:
    plain = logits_of(models.target)
    with pytest.raises(RuntimeError, match="out of here"), LayerSkipping(models.target, SOME):
        raise RuntimeError("out of here")
    assert torch.equal(logits_of(models.target), plain)


def test_a_forward_of_somebody_else_s_stays(models: Models) -> None:
    """accelerate, for one, puts its own `forward` into modules."""
    mlp = models.target.model.layers[2].mlp
    calls: list[int] = []
    own = mlp.forward

    def theirs(hidden: Tensor) -> Tensor:
        calls.append(1)
        return own(hidden)

    mlp.forward = theirs
    try:
        with LayerSkipping(models.target, SOME):
            calls.clear()
            logits_of(models.target)
            assert not calls  # left out
        assert mlp.__dict__["forward"] is theirs
        with LayerSkipping(models.target, SkippedLayers(attention=frozenset({2}))):
            logits_of(models.target)
        assert calls  # and not left out
    finally:
        del mlp.forward


class Three(nn.Module):
    """Returns what older families' attentions do."""

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return hidden_states, hidden_states, hidden_states


def test_what_is_passed_by_returns_as_many_values_as_ever() -> None:
    module, given = Three(), torch.ones(2, 3)
    with Bypass([module], {id(module): 3}):
        nothing, *others = module(hidden_states=given)
    assert torch.equal(nothing, torch.zeros(2, 3)) and others == [None, None]
    assert module(given)[2] is given


# --- what cannot be left out


@pytest.mark.parametrize("layer", [LAYERS, -1])
def test_a_layer_that_there_is_not(models: Models, layer: int) -> None:
    with pytest.raises(OptionError, match=rf"no layer {layer} in LlamaForCausalLM; its layers are 0 to {LAYERS - 1}"):
        check_layers(models.target, SkippedLayers(mlp=frozenset({layer})))


def test_a_layer_without_an_mlp_of_its_own_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedError, match="layer 1 of OPTForCausalLM, a OPTDecoderLayer, has no mlp of its own"):
        check_layers(tiny_model("opt"), SkippedLayers(attention=frozenset({1})))


def test_a_model_without_layers_is_refused_by_name(models: Models) -> None:
    model = copy.deepcopy(models.target)
    model.model.blocks = model.model.layers
    del model.model.layers
    with pytest.raises(UnsupportedError, match="no decoder layers are found in LlamaForCausalLM"):
        check_layers(model, SOME)


def test_over_pages_every_layer_with_a_window_may_be_left_out() -> None:
    """Their windows are told by the layers that run: a draft that leaves just those out tells of none."""
    model = tiny_model("gemma2")
    windowed = [i for i, kind in enumerate(model.config.layer_types) if kind == "sliding_attention"]
    skipped = SkippedLayers(attention=frozenset(windowed))
    spec = Speculator(drafter=LayerSkip(layers=skipped), tree="chain:length=2", controller="fixed", kernel="paged")
    call = {"max_new_tokens": 16, "do_sample": False}
    assert windowed
    assert torch.equal(model.generate(IDS, assistant=spec, **call), model.generate(IDS, **call))
    assert spec.stats.proposed > 0


class Louder(nn.Module):
    """A norm that adds something of its own."""

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + 1


def test_a_layer_that_does_more_is_refused_by_name() -> None:
    """A norm behind a sublayer that makes something of nothing: leaving the sublayer out is not what comes in goes out."""
    model = tiny_model("gemma2")
    model.model.layers[2].post_feedforward_layernorm = Louder()
    check_layers(model, SkippedLayers(mlp=frozenset({1})))
    with pytest.raises(UnsupportedError, match="layer 2 of Gemma2ForCausalLM does more than add"):
        check_layers(model, SkippedLayers(mlp=frozenset({1, 2})))


def test_a_model_that_does_not_run_without_is_refused_by_name(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    model = copy.deepcopy(models.target)
    layer = model.model.layers[2]
    forward = layer.forward

    def wants_more(*args: Any, **kwargs: Any) -> Any:
        if not layer.mlp.forward.__qualname__.startswith("LlamaMLP"):
            raise KeyError("shared state")
        return forward(*args, **kwargs)

    layer.forward = wants_more
    with pytest.raises(UnsupportedError, match="LlamaForCausalLM does not run without its sublayers .*shared state"):
        check_layers(model, SOME)


def test_another_thread_s_forward_is_not_looked_at(models: Models) -> None:
    model, main = copy.deepcopy(models.target), threading.get_ident()

    def meanwhile(*_: Any) -> None:
        if threading.get_ident() == main:
            thread = threading.Thread(target=logits_of, args=(model,))
            thread.start()
            thread.join()

    model.lm_head.register_forward_pre_hook(meanwhile)
    layer = model.model.layers[2]
    given, _ = skipping._calls(model, [layer])[id(layer)]
    assert given.shape[:2] == (1, 2)


# --- drafting


def plain(models: Models, rows: int, padding: str) -> Any:
    key = (rows, padding)
    if key not in models.expected:
        models.expected[key] = models.target.generate(**prompt(rows, padding), max_new_tokens=NEW)
    return models.expected[key]


@pytest.mark.parametrize("tree", ["auto", "chain:length=5", "kary:branch=2,depth=3", "dynamic:size=9,depth=4"])
@pytest.mark.parametrize("stop", [0.0, 0.8])
@pytest.mark.parametrize(("rows", "padding"), [(1, "none"), (3, "none"), (3, "left"), (3, "right"), (3, "holes")])
def test_greedy_says_what_plain_says(models: Models, rows: int, padding: str, stop: float, tree: str) -> None:
    spec = Speculator(drafter=LayerSkip(0.2, stop=stop), tree=tree, controller="fixed")
    same(
        models.target.generate(**prompt(rows, padding), max_new_tokens=NEW, assistant=spec),
        plain(models, rows, padding),
    )
    assert spec.stats.proposed


@pytest.mark.parametrize("padding", ["none", "left"])
def test_with_a_window_as_well(models: Models, padding: str) -> None:
    spec = Speculator(drafter=LayerSkip(0.2, kv_policy=Streaming(2, 5), stop=0.0), controller="fixed")
    same(models.target.generate(**prompt(3, padding), max_new_tokens=NEW, assistant=spec), plain(models, 3, padding))


def test_a_target_that_hardly_needs_its_layers_accepts_nearly_all() -> None:
    """Sublayers that add next to nothing; left out, the draft is nearly the target."""
    model = tiny(num_hidden_layers=LAYERS)
    skipped = evenly_spread(LAYERS, 0.45)
    with torch.no_grad():
        for layer in skipped.attention:
            model.model.layers[layer].self_attn.o_proj.weight *= 1e-6
        for layer in skipped.mlp:
            model.model.layers[layer].mlp.down_proj.weight *= 1e-6
    inputs = prompt(3, "left")
    expected = model.generate(**inputs, max_new_tokens=NEW)
    spec = Speculator(drafter=LayerSkip(stop=0.0), tree="chain:length=3", controller="fixed")
    same(model.generate(**inputs, max_new_tokens=NEW, assistant=spec), expected)
    assert spec.stats.accepted_length > 3.5
    worse = Speculator(drafter=LayerSkip(layers=SkippedLayers(frozenset({0}), frozenset({0})), stop=0.0), tree="chain:length=3", controller="fixed")  # fmt: skip
    same(model.generate(**inputs, max_new_tokens=NEW, assistant=worse), expected)
    assert worse.stats.accepted_length < 3  # or it is not what was left out that counts


# --- the search


def test_predicted_speed_up_by_hand() -> None:
    speedup, length = predicted((0.5, 0.5), 0.25)
    assert speedup == pytest.approx(max(1.5 / 1.25, 1.75 / 1.5)) and length == 1
    assert predicted((1.0, 1.0, 1.0), 0.5) == (pytest.approx(4 / 2.5), 3)
    assert predicted((0.0, 0.0), 0.0) == (1.0, 1)


def test_a_score_is_what_a_draft_over_the_whole_model_s_cache_agrees_in(models: Models) -> None:
    """Against a copy with silenced weights, block by block in plain loops."""
    model, prompts, new = models.target, IDS, 19
    trial = LayerTrial(model, prompts, new, Shares(0.1, 0.05))
    texts = model.generate(prompts, max_new_tokens=new, attention_mask=torch.ones_like(prompts))
    draft, agreed, count = silenced(model, SOME), 0, 0
    for row in texts:
        for start in range(prompts.shape[1], len(row), BLOCK):
            cache = DynamicCache()
            with torch.no_grad():
                if start > 1:
                    model(input_ids=row[None, : start - 1], past_key_values=cache, use_cache=True)
                read = row[None, start - 1 : min(start + BLOCK, len(row)) - 1]
                choice = draft(input_ids=read, past_key_values=cache, use_cache=True).logits.argmax(-1)[0]
            wanted = row[start : start + BLOCK]
            agreed, count = agreed + int((choice == wanted).sum()), count + len(wanted)
    score = trial.score(SOME)
    assert count == new * 2 and 0 < agreed < count
    assert score.agreement == pytest.approx(agreed / count)
    assert score.saved == pytest.approx(2 * 0.1 + 2 * 0.05)
    assert trial.score(SkippedLayers()) == Score(1.0, 0.0, pytest.approx(1.0), 1)


def test_tokens_behind_an_end_do_not_count(models: Models) -> None:
    model = copy.deepcopy(models.target)
    text = model.generate(IDS, max_new_tokens=12, attention_mask=torch.ones_like(IDS))
    model.config.eos_token_id = [int(text[0, 7 + 3])]
    trial = LayerTrial(model, IDS, 12, Shares(0.1, 0.1))
    first = (text[:, 7:] == model.config.eos_token_id[0]).int().argmax(1)
    assert trial._counted[0].sum() == int(first[0]) + 1
    counted, agreed = trial._counted, torch.zeros(2, 12)
    for place in counted.flatten().nonzero().flatten().tolist():  # one token at a time
        trial._counted = torch.zeros(24, dtype=torch.bool).index_fill(0, torch.tensor([place]), True).view(2, 12)
        agreed.view(-1)[place] = trial.score(SOME).agreement
    trial._counted = counted
    assert set(agreed[counted].tolist()) == {0.0, 1.0}  # each is its own, and not all are alike
    assert trial.score(SOME).agreement == pytest.approx(float(agreed.sum() / counted.sum()))


def test_shares_of_a_forward_are_those_of_what_takes_long(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that counts calls: an attention takes 3, an MLP 1, everything else 5."""
    now, model = [0.0], copy.deepcopy(models.target)

    def takes(module: nn.Module, seconds: float) -> None:
        module.register_forward_pre_hook(lambda *_: now.__setitem__(0, now[0] + seconds))

    for layer in model.model.layers:
        takes(layer.self_attn.q_proj, 3)
        takes(layer.mlp.gate_proj, 1)
    takes(model.lm_head, 5)
    monkeypatch.setattr(layers_trial.time, "perf_counter", lambda: now[0])
    whole = 5 + LAYERS * 4
    assert measured_shares(model, IDS[:1]) == Shares(pytest.approx(3 / whole), pytest.approx(1 / whole))


def judge(best: SkippedLayers) -> Any:
    """A score that falls with every sublayer that is wrong."""

    def score(skipped: SkippedLayers) -> Score:
        wrong = len(skipped.attention ^ best.attention) + len(skipped.mlp ^ best.mlp)
        return Score(1.0, 0.0, 2.0 - 0.1 * wrong, 1)

    return score


def times(count: int) -> Any:
    left = iter(range(count))
    return lambda best: next(left, None) is not None


def test_a_search_finds_the_best_choice_and_finds_it_the_same_way_again() -> None:
    best, looked = SkippedLayers(frozenset({1, 5, 8}), frozenset({2, 3, 9})), []
    score = judge(best)
    for seed in (0, 0, 1):
        looked.append([])
        found = search(lambda skipped: looked[-1].append(skipped) or score(skipped), evenly_spread(12, 0.45), 12, seed, times(400))  # fmt: skip
        assert found == (best, score(best))
    assert looked[0] == looked[1] != looked[2]


def test_a_search_leaves_out_something_and_never_of_the_ends_and_looks_at_nothing_twice() -> None:
    looked: list[SkippedLayers] = []

    def score(skipped: SkippedLayers) -> Score:
        looked.append(skipped)
        return Score(1.0, 0.0, 1.0 / (1 + len(skipped.attention) + len(skipped.mlp)), 1)

    found, _ = search(score, evenly_spread(4, 0.45), 4, 0, times(100))
    assert len(found.attention) + len(found.mlp) == 1
    singles = {SkippedLayers(**{kind: frozenset({layer})}) for kind in ("attention", "mlp") for layer in (1, 2)}
    assert singles <= set(looked) and len(set(looked)) == len(looked)
    assert all(skipped.attention | skipped.mlp <= {1, 2} for skipped in looked)


# --- the command


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("layers")
    tiny(num_hidden_layers=LAYERS, dtype="float32").save_pretrained(base / "target")
    tiny_tokenizer().save_pretrained(base / "target")
    (base / "texts").mkdir()
    for number in range(4):
        (base / "texts" / f"{number}.txt").write_text(f"line {number}: some words, some more words. " * 4)
    return base


def command(folder: Path, out: str, *more: str) -> int:
    parser = argparse.ArgumentParser()
    layers_command.add_parser(parser.add_subparsers())
    given = [
        "layer-skip",
        "--target",
        str(folder / "target"),
        "--prompts",
        str(folder / "texts"),
        "--out",
        str(folder / out),
    ]
    sizes = ["--context", "20", "--new", "10", "--rows", "2", "--iterations", "12", "--quiet"]
    arguments = parser.parse_args([*given, *sizes, *more])
    return arguments.run(arguments)


def test_the_command_writes_a_file_for_the_drafter(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(folder, "layers.json", "--skip", "0.3") == 0
    content = json.loads((folder / "layers.json").read_text())
    model = tiny(num_hidden_layers=LAYERS, dtype="float32")
    assert content["model"] == name_of(model)
    assert content["after"]["speedup"] >= content["before"]["speedup"]
    assert content["search"]["skip"] == 0.3 and content["search"]["iterations"] == 12
    printed = capsys.readouterr().out
    assert "evenly spread" in printed and "layer_skip:layers=" in printed
    inputs = prompt(2, "left")
    spec = Speculator(drafter=LayerSkip(layers=folder / "layers.json"), controller="fixed")
    same(model.generate(**inputs, max_new_tokens=NEW, assistant=spec), model.generate(**inputs, max_new_tokens=NEW))


def test_the_same_seed_finds_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from specplug_hf.training import layers_job

    monkeypatch.setattr(layers_job, "measured_shares", lambda *_: Shares(0.1, 0.1))  # what is timed differs each time
    for out in ("one.json", "two.json"):
        command(folder, out, "--seed", "3")
    assert (folder / "one.json").read_text() == (folder / "two.json").read_text()


def test_what_holds_for_the_search_s_prompts_only_is_not_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from specplug_hf.training import layers_job

    worse = SkippedLayers(attention=frozenset({1, 2, 3}), mlp=frozenset({1, 2, 3}))
    monkeypatch.setattr(layers_job, "measured_shares", lambda *_: Shares(0.0, 0.0))
    monkeypatch.setattr(layers_job, "search", lambda *_: (worse, Score(1.0, 1.0, 9.0, 8)))
    command(folder, "spread.json", "--skip", "0.1")
    content = json.loads((folder / "spread.json").read_text())
    spread = evenly_spread(LAYERS, 0.1)
    assert (content["attention"], content["mlp"]) == (sorted(spread.attention), sorted(spread.mlp))
    assert content["before"] == content["after"]


@pytest.mark.parametrize(
    ("more", "cause"),
    [
        (["--out", "nowhere/layers.json"], "--out 'nowhere/layers.json': there is no such folder"),
        (["--prompts", "nowhere"], "--prompts 'nowhere': it must be a folder with"),
        (["--context", "600"], "--context 600 and --new 10 go beyond the 512 positions"),
        (["--target", "./nowhere"], "No model folder at nowhere"),
    ],
)
def test_what_cannot_be_is_refused(folder: Path, more: list[str], cause: str) -> None:
    with pytest.raises(OptionError, match=cause):
        command(folder, "unused.json", *more)


def test_one_text_is_too_few(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "only.txt").write_text("some words " * 20)
    with pytest.raises(OptionError, match="it takes two texts"):
        command(folder, "unused.json", "--prompts", str(tmp_path))


def test_layers_of_another_model_are_refused_before_anything_runs(fp64: Models, tmp_path: Path) -> None:
    file = tmp_path / "layers.json"
    file.write_text(json.dumps({"model": "Other of 3 layers", "attention": [1], "mlp": []}))
    spec = Speculator(drafter=LayerSkip(layers=str(file)), controller="fixed")
    forwards = []
    hook = fp64.target.register_forward_pre_hook(lambda *_: forwards.append(1))
    try:
        with pytest.raises(OptionError, match="Other of 3 layers"):
            fp64.target.generate(**prompt(1), max_new_tokens=2, assistant=spec)
    finally:
        hook.remove()
    assert not forwards
