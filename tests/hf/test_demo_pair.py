"""The pair that ships: its files, its shapes, its prompts, the recipe that made it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from specplug import Speculator
from specplug.errors import SpecplugError
from specplug_hf.demo import corpus, load_pair, prompt, prompt_text, train
from specplug_hf.demo.agreement import agreement, held_out_loss
from specplug_hf.demo.corpus import is_held_out
from specplug_hf.demo.muon import orthogonalise
from specplug_hf.demo.pair import DRAFT_FOLDER, FOLDER, HEADS_FOLDER, LAYERS_FILE, TARGET_FOLDER
from specplug_hf.demo.prompts import count, sources
from specplug_hf.demo.resize import deepen, mean, narrow
from specplug_hf.demo.shapes import Shape
from specplug_hf.demo.trainer import Phase, Recipe, Trainer
from specplug_hf.training.continuations import Continuations, extend

TINY = Shape(layers=2, hidden=16, inner=24, heads=2, kv_heads=1)
AGREEMENT_FLOOR = 0.66  # measured in this setting: 0.729
HEADS_FLOOR = 1.5  # tokens a round
LOSS_CEILING = 3.1  # nats a token; measured in this setting: 2.887
Pair = tuple[LlamaForCausalLM, LlamaForCausalLM, PreTrainedTokenizerFast]


@pytest.fixture(scope="module")
def pair() -> Pair:
    return load_pair()


def test_the_weights_are_small_and_safe() -> None:
    files = [p for p in FOLDER.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    weights = [p for p in files if p.suffix == ".safetensors"]
    assert sum(p.stat().st_size for p in weights) <= 24e6
    assert sum(p.stat().st_size for p in files if "prompts" in p.parts) <= 1e6
    assert len(weights) == 3
    assert {p.suffix for p in files} <= {".safetensors", ".json", ".txt", ".py", ".md", ""}


@pytest.mark.parametrize("folder", [TARGET_FOLDER, DRAFT_FOLDER], ids=["target", "draft"])
def test_each_folder_loads_alone(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", local_files_only=True)
    assert model.dtype == torch.float16
    text = "def f(x):\n\treturn 'é'  # <\n"
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_the_heads_know_the_target(pair: Pair) -> None:
    target, _, _ = pair
    spec = Speculator(drafter=f"mlp_speculator:path={HEADS_FOLDER}", tree="chain:length=4", controller="fixed")
    rounds = tokens = 0
    for number in (0, 5, 9):
        ids = prompt(128, number)
        call = dict(attention_mask=torch.ones_like(ids), max_new_tokens=48, eos_token_id=None)
        assert torch.equal(target.generate(ids, assistant=spec, **call), target.generate(ids, **call))
        rounds, tokens = rounds + spec.stats.rounds, tokens + 48
    assert tokens / rounds > HEADS_FLOOR


def test_the_layers_that_were_found_are_better_left_out_than_others(pair: Pair) -> None:
    target, _, _ = pair
    tokens = {}
    for drafter in ("layer_skip", f"layer_skip:layers={LAYERS_FILE}"):
        spec, rounds = Speculator(drafter=drafter, tree="chain:length=3", controller="fixed"), 0
        for number in (0, 5, 9):
            ids = prompt(128, number)
            call = dict(attention_mask=torch.ones_like(ids), max_new_tokens=48, eos_token_id=None)
            assert torch.equal(target.generate(ids, assistant=spec, **call), target.generate(ids, **call))
            rounds += spec.stats.rounds
        tokens[drafter] = 3 * 48 / rounds
    evenly, found = tokens.values()
    assert found > evenly


def test_shapes(pair: Pair) -> None:
    target, draft, tokenizer = pair
    size = {m: sum(p.numel() for p in m.parameters()) for m in (target, draft)}
    embedding = {m: m.model.embed_tokens.weight.numel() for m in (target, draft)}
    assert 5e6 <= size[target] <= 10e6
    assert size[draft] - embedding[draft] <= (size[target] - embedding[target]) / 10
    assert 2000 <= len(tokenizer) <= 4000
    for model in (target, draft):
        assert model.config.model_type == "llama"
        assert model.config.max_position_embeddings == 16384
        assert model.config.num_key_value_heads < model.config.num_attention_heads
        assert model.config.vocab_size == len(tokenizer)
        assert model.dtype == torch.float32
        assert not model.training
        assert (model.generation_config.eos_token_id, model.generation_config.pad_token_id) == (0, 0)
        assert not model.generation_config.do_sample
    assert tokenizer.eos_token_id == 0
    assert tokenizer.get_vocab() == AutoTokenizer.from_pretrained(DRAFT_FOLDER, local_files_only=True).get_vocab()


def test_prompts_are_held_out() -> None:
    assert count() >= 20
    assert all(is_held_out(name) for i in range(count()) for name in sources(i))
    assert len({sources(i)[0] for i in range(count())}) == count()


def test_prompts_are_exact_and_deterministic() -> None:
    for tokens in (1, 256, 8448):
        assert prompt(tokens, 1).shape == (1, tokens)
        assert prompt(tokens, 1).dtype == torch.int64
    assert torch.equal(prompt(64, 3), prompt(128, 3)[:, :64])
    assert prompt_text(64, 3) == prompt_text(64, 3)
    assert len({prompt_text(256, i) for i in range(count())}) == count()
    assert min(prompt(8900, i).min() for i in range(count())) > 0


@pytest.mark.parametrize(("tokens", "index"), [(0, 0), (-1, 0), (10**6, 0), (16, 999), (16, -1), (1.5, 0)])
def test_a_prompt_that_cannot_be_is_an_error(tokens: int, index: int) -> None:
    wrong = index if index in (999, -1) else tokens
    with pytest.raises(SpecplugError, match=str(wrong)):
        prompt(tokens, index)


def test_the_target_writes_python(pair: Pair) -> None:
    target, _, tokenizer = pair
    ids = tokenizer("import os\n\n\nclass Point:\n    def __init__(self, x, y):\n        self.x =", return_tensors="pt")
    assert tokenizer.decode(extend(target, ids["input_ids"], 1)[0, -1]).strip() == "x"


def test_the_draft_costs_a_tenth(pair: Pair) -> None:
    target, draft = (sum(p.numel() for p in model.parameters()) for model in pair[:2])
    assert draft <= target / 10
    assert 5e6 <= target <= 10e6


def test_the_target_knows_python_it_has_not_seen(pair: Pair) -> None:
    held_out = torch.cat([prompt(1024, i)[0] for i in range(0, count(), 2)])
    assert held_out_loss(pair[0], held_out) < LOSS_CEILING


def test_greedy_agreement(pair: Pair) -> None:
    target, draft, _ = pair
    prompts = torch.cat([prompt(256, i) for i in range(0, count(), 2)])
    assert agreement(target, draft, prompts, new=32) > AGREEMENT_FLOOR


@pytest.mark.slow
def test_the_model_sees_past_8k(pair: Pair) -> None:
    target = pair[0]
    ids = prompt(8448, 0)
    with torch.no_grad():
        logits = target(input_ids=ids, logits_to_keep=257).logits[0, :-1]
    assert torch.nn.functional.cross_entropy(logits, ids[0, -256:]) < 4.0


def test_orthogonalise_flattens_the_singular_values() -> None:
    matrices = torch.randn(3, 8, 20, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalise(matrices))
    assert values.min() > 0.4
    assert values.max() < 1.4


def test_deepening_keeps_the_function() -> None:
    torch.manual_seed(0)
    small = LlamaForCausalLM(TINY.config(layers=2))
    ids = torch.randint(0, 3072, (2, 9))
    assert torch.allclose(small(ids).logits, deepen(small, TINY, 4)(ids).logits, atol=1e-6)
    with pytest.raises(ValueError, match="2 layers cannot grow to 3"):
        deepen(small, TINY, 3)


def test_narrowing_drops_the_smallest_neurons() -> None:
    torch.manual_seed(0)
    wide = LlamaForCausalLM(TINY.config())
    idle = torch.tensor([1, 5, 6, 20])
    with torch.no_grad():
        for layer in wide.model.layers:
            layer.mlp.gate_proj.weight[idle] = 0
    ids = torch.randint(0, 3072, (2, 9))
    assert torch.allclose(wide(ids).logits, narrow(wide, replace(TINY, inner=20))(ids).logits, atol=1e-6)
    assert not torch.allclose(wide(ids).logits, narrow(wide, replace(TINY, inner=19))(ids).logits, atol=1e-6)
    with pytest.raises(ValueError, match="24 neurons cannot be narrowed to 25"):
        narrow(wide, replace(TINY, inner=25))


def test_resuming_gives_the_same_weights(tmp_path: Path) -> None:
    phases = (Phase(0.4, 16, 1), Phase(0.8, 16, 2), Phase(1.0, 32, 2))
    recipe = Recipe(phases, tokens=12 * 64, batch_tokens=64, micro_tokens=32)
    data = torch.randint(0, 3072, (500,), generator=torch.Generator().manual_seed(1))
    make = lambda name: Trainer(TINY, recipe, data, tmp_path / name, torch.device("cpu"))  # noqa: E731
    whole = make("whole").run().state_dict()
    for _ in range(4):
        make("parts").run(stop_after=3)
    parts = make("parts").run().state_dict()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert not list(tmp_path.rglob("*.pt"))


@pytest.mark.slow
def test_the_recipe_runs_end_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [(f"{i}.py", f"def f{i}(a, b):\n    return a + {i} * b\n\n\n" * 40) for i in range(60)]
    assert 0 < sum(is_held_out(name) for name, _ in files) < 20
    monkeypatch.setattr(train, "library_files", lambda: files)
    monkeypatch.setattr(train, "TARGET", TINY)
    monkeypatch.setattr(train, "DRAFT", TINY)
    monkeypatch.setattr(train, "TARGET_PHASES", (Phase(0.5, 64, 1), Phase(1.0, 128, 2)))
    monkeypatch.setattr(train, "DRAFT_PHASES", (Phase(1.0, 64, 2),))
    texts = [Continuations(rows=4, prompt=8, new=16), Continuations(rows=2, prompt=20, new=12)]
    own = [train.OwnTexts(f"own-{i}", plan, 0.2, 0.2, remembered=3) for i, plan in enumerate(texts)]
    monkeypatch.setattr(train, "OWN_TEXTS", own)
    arguments = ["all", "--out", str(tmp_path), "--tokens", "60000", "--device", "cpu"]
    train.main(arguments)
    printed = capsys.readouterr().out
    assert "held-out loss" in printed
    assert "greedy agreement" in printed
    target = AutoModelForCausalLM.from_pretrained(tmp_path / "target", dtype="auto")
    assert target.dtype == torch.float16
    assert target.config.num_hidden_layers == 2
    before = {name: p.clone() for name, p in target.state_dict().items()}
    train.main(arguments)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "target", dtype="auto").state_dict()
    assert all(torch.equal(before[name], again[name]) for name in before)
    assert json.loads((tmp_path / "draft" / "config.json").read_text())["max_position_embeddings"] == 16384


def test_a_mean_of_two_models_is_half_way_and_leaves_them_alone() -> None:
    torch.manual_seed(0)
    first, second = (LlamaForCausalLM(TINY.config(2, 3072)) for _ in range(2))
    weights = [{name: p.clone() for name, p in model.state_dict().items()} for model in (first, second)]
    between = mean(first, second).state_dict()
    for name, p in between.items():
        assert torch.allclose(p, (weights[0][name] + weights[1][name]) / 2)
    assert all(torch.equal(p, weights[0][name]) for name, p in first.state_dict().items())
    assert not torch.equal(between["lm_head.weight"], weights[0]["lm_head.weight"])


def test_the_corpus_is_split_by_hash() -> None:
    names = [name for name, _ in corpus.library_files()]
    held = [name for name in names if is_held_out(name)]
    assert 0.02 < len(held) / len(names) < 0.1
    assert not any("test" in Path(name).parts or "site-packages" in name for name in names)
