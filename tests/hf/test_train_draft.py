"""`specplug train draft`: divergences, acceptance, texts to learn from, interrupted trainings, and the command."""

from __future__ import annotations

import argparse
import copy
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from generate_tools import tiny_tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM

from specplug import OptionError, Speculator, UnsupportedError
from specplug.cli import main
from specplug_conformance.llama.tiny import disturbed, tiny
from specplug_hf.demo.agreement import agreement
from specplug_hf.training import draft as recipe
from specplug_hf.training.continuations import extend
from specplug_hf.training.data import windows
from specplug_hf.training.draft import Distillation, Mixture, Source, distil
from specplug_hf.training.draft_acceptance import Trial, acceptance_by_depth
from specplug_hf.training.draft_command import DIVERGENCES
from specplug_hf.training.draft_divergences import divergence
from specplug_hf.training.draft_models import common_vocabulary
from specplug_hf.training.loop import Plan

VOCAB = 97


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def by_formula(name: str, p: list[float], q: list[float], beta: float) -> float:
    """DistillSpec's table 1, one token at a time."""
    m = [beta * a + (1 - beta) * b for a, b in zip(p, q, strict=True)]
    return {
        "kl": kl(p, q),
        "reverse-kl": kl(q, p),
        "jsd": beta * kl(p, m) + (1 - beta) * kl(q, m),
        "tvd": 1 - sum(min(a, b) for a, b in zip(p, q, strict=True)),
    }[name]


def logits(seed: int, *shape: int) -> Tensor:
    return 2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("beta", [0.5, 0.1])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_divergences_are_their_formulas(name: str, beta: float) -> None:
    target, draft = (logits(seed, 3, 5, 7).log_softmax(-1) for seed in (1, 2))
    found = divergence(name, beta)(target, draft)
    assert found.shape == (3, 5)
    for row in range(3):
        for place in range(5):
            laws = (x[row, place].exp().tolist() for x in (target, draft))
            assert float(found[row, place]) == pytest.approx(by_formula(name, *laws, beta), abs=1e-12)
    assert torch.allclose(divergence(name, beta)(target, target), torch.zeros(3, 5, dtype=torch.float64), atol=1e-12)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_divergences_have_the_gradient_of_what_they_are(name: str) -> None:
    target = logits(1, 2, 6).log_softmax(-1)
    function = divergence(name, 0.3)
    assert torch.autograd.gradcheck(lambda x: function(target, x.log_softmax(-1)), logits(2, 2, 6).requires_grad_())


@pytest.mark.parametrize("name", DIVERGENCES)
def test_divergences_bear_what_is_practically_impossible(name: str) -> None:
    far = torch.tensor([[0.0, -200.0, 3.0]])
    draft = far.flip(-1).requires_grad_()
    found = divergence(name)(far.log_softmax(-1), draft.log_softmax(-1))
    found.sum().backward()
    assert found.isfinite().all() and draft.grad is not None and draft.grad.isfinite().all()


@pytest.mark.parametrize("beta", [0.0, 1.0, -1.0])
def test_a_mixture_without_a_share_is_refused(beta: float) -> None:
    with pytest.raises(OptionError, match="--beta"):
        divergence("jsd", beta)


def test_acceptance_by_depth_is_that_of_chains() -> None:
    generator = torch.Generator().manual_seed(0)
    agreed = torch.rand((5, 9), generator=generator) < 0.7
    counted = torch.arange(9)[None] < torch.tensor([9, 9, 4, 1, 0])[:, None]
    tried, right = [0] * 4, [0] * 4
    for row in range(5):
        for start in range(9):
            for depth in range(4):
                place = start + depth
                if place >= 9 or not counted[row, place]:
                    break
                tried[depth] += 1
                if not agreed[row, place]:
                    break
                right[depth] += 1
    expected = [r / t for r, t in zip(right, tried, strict=True)]
    assert acceptance_by_depth(agreed, counted, 4) == pytest.approx(expected)
    assert acceptance_by_depth(torch.zeros(1, 3, dtype=torch.bool), torch.ones(1, 3, dtype=torch.bool), 2) == (0, 0)


def prompts(rows: int = 4, length: int = 6, seed: int = 3) -> Tensor:
    return torch.randint(2, VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))


def test_a_model_accepts_all_that_it_drafts_itself() -> None:
    target = tiny(dtype="float32")
    found = Trial(target, prompts(), 8, VOCAB, seed=0).acceptance(copy.deepcopy(target))
    assert (found.greedy, found.by_depth) == (1, (1, 1, 1, 1))
    assert found.expected == pytest.approx(1)
    assert found.tokens_a_round == pytest.approx(5)


def test_acceptance_is_counted_on_what_the_target_writes() -> None:
    target = tiny(dtype="float32", eos_token_id=VOCAB)  # a token that it never writes
    draft = disturbed(target, 0.1)
    found = Trial(target, prompts(), 8, VOCAB, seed=0).acceptance(draft)
    assert found.greedy == pytest.approx(agreement(target, draft, prompts(), new=8))
    texts = extend(target, prompts(), 8, torch.Generator().manual_seed(0))
    overlaps = []
    with torch.no_grad():
        for row in texts:
            for end in range(6, 14):
                p, q = (model(input_ids=row[None, :end]).logits[0, -1].softmax(-1) for model in (target, draft))
                overlaps.append(sum(min(a, b) for a, b in zip(p.tolist(), q.tolist(), strict=True)))
    assert found.expected == pytest.approx(sum(overlaps) / len(overlaps), abs=1e-5)
    a, b, c, d = found.by_depth
    assert found.tokens_a_round == pytest.approx(1 + a + a * b + a * b * c + a * b * c * d)
    assert 0 < found.greedy < 1


def test_nothing_counts_behind_an_end_token() -> None:
    target = tiny(dtype="float32")
    target.generation_config.eos_token_id = [7, 9]
    trial = Trial(target, prompts(), 8, VOCAB, seed=0)
    counted = trial._before_end(torch.tensor([[1, 7, 2, 9], [3, 4, 5, 6], [9, 7, 7, 7]]))
    assert counted.int().tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]


def mixture(on_policy: float, target_text: float, rows: int = 4) -> Mixture:
    return Mixture(on_policy, target_text, rows=rows, prompt=6, new=5)


def data(length: int = 600) -> Tensor:
    return torch.randint(2, VOCAB, (length,), generator=torch.Generator().manual_seed(9))


@pytest.mark.parametrize("shares", [(0.7, 0.4), (-0.1, 0.5), (0.5, -0.1)])
def test_shares_that_cannot_be_are_refused(shares: tuple[float, float]) -> None:
    with pytest.raises(OptionError, match="--on-policy"):
        mixture(*shares)


def test_the_sources_have_their_shares() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = [mixture(0.5, 0.2).source(generator) for _ in range(4000)]
    for source, share in ((Source.DRAFT, 0.5), (Source.TARGET, 0.2), (Source.DATA, 0.3)):
        assert drawn.count(source) / 4000 == pytest.approx(share, abs=0.04)  # five standard deviations


def distillation(mix: Mixture, written: Tensor | None = None) -> Distillation:
    target = tiny(dtype="float32")
    draft = disturbed(target, 0.1)
    return Distillation(target, draft, divergence("kl"), mix, data(), written, VOCAB, seed=1)


def plain_loss(run: Distillation, ids: Tensor, first: int) -> float:
    """Mean KL at the places from `first` on, by the formula."""
    with torch.no_grad():
        p, q = (model(input_ids=ids).logits.double().softmax(-1) for model in (run.target, run.draft))
    places = range(first - 1, ids.shape[1] - 1)
    return sum(kl(p[r, t].tolist(), q[r, t].tolist()) for r in range(len(ids)) for t in places) / (
        len(ids) * len(places)
    )


def total(losses: Iterable[Tensor]) -> float:
    return sum(float(loss.detach()) for loss in losses)


@pytest.mark.parametrize("most", [1 << 25, 11 * VOCAB], ids=["at once", "row by row"])
def test_data_is_learnt_whole_and_written_texts_without_their_prompts(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipe, "MOST_LOGITS", most)
    generator = torch.Generator()
    run = distillation(mixture(0, 0))
    ids = windows(data(), 11, 3 * 4, 4, 1)
    assert total(run.losses(3, generator.manual_seed(0))) == pytest.approx(plain_loss(run, ids, 1), abs=1e-5)

    written = torch.randint(2, VOCAB, (8, 11), generator=torch.Generator().manual_seed(2))
    run = distillation(mixture(0, 1), written)
    ids = windows(written, 11, 3 * 4, 4, 1)
    assert total(run.losses(3, generator.manual_seed(0))) == pytest.approx(plain_loss(run, ids, 6), abs=1e-5)

    run = distillation(mixture(1, 0))
    generator.manual_seed(5)
    torch.rand((), generator=generator)
    ids = extend(run.draft, windows(data(), 6, 3 * 4, 4, 1), 5, generator)
    assert total(run.losses(3, generator.manual_seed(5))) == pytest.approx(plain_loss(run, ids, 6), abs=1e-5)


def test_only_the_draft_learns() -> None:
    run = distillation(mixture(1, 0))
    sum(run.losses(0, torch.Generator().manual_seed(0))).backward()
    assert all(p.grad is None for p in run.target.parameters())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in run.draft.parameters())


def train(folder: Path, *stops: int | None, steps: int = 6, name: str = "kl", mix: Mixture | None = None) -> Any:
    """A draft distilled with an interruption after each of `stops`; each time it is loaded as it was at first."""
    target = tiny(dtype="float32")
    for stop in stops:
        draft = disturbed(target, 0.1)
        plan = Plan(steps, seed=1, warmup=2)
        mix = mix or mixture(0.4, 0.3)
        distil(target, draft, divergence(name), mix, data(), plan, 1e-3, folder, VOCAB, stop)
    return draft


def test_an_interrupted_training_ends_with_the_same_weights(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", None).state_dict()
    parts = train(tmp_path / "parts", 2, 1, None).state_dict()
    begun = disturbed(tiny(dtype="float32"), 0.1).state_dict()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert not any(torch.equal(whole[name], begun[name]) for name in whole)
    assert {p.suffix for p in tmp_path.rglob("*") if p.is_file()} == {".safetensors", ".json"}


@pytest.mark.parametrize("name", DIVERGENCES)
def test_distillation_raises_the_acceptance(name: str, tmp_path: Path) -> None:
    target = tiny(dtype="float32")
    trial = Trial(target, prompts(8, 6, seed=77), 8, VOCAB, seed=0)
    before = trial.acceptance(disturbed(target, 0.1))
    after = trial.acceptance(train(tmp_path, None, steps=40, name=name, mix=mixture(0.5, 0.25, rows=16)))
    assert after.expected > before.expected + 0.02


def saved(model: Any, folder: Path, tokenizer: Any) -> str:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def given(tmp_path: Path, tokenizer: Any) -> list[str]:
    """A command line: a target, a draft in half precision, a text."""
    target = tiny(dtype="float32", vocab=97)
    folders = (
        saved(target, tmp_path / "target", tokenizer),
        saved(disturbed(target, 0.1).half(), tmp_path / "draft", tokenizer),
    )
    text = tmp_path / "text.txt"
    text.write_text("".join(f"x{n} = {n % 7} + y\n" for n in range(400)).replace("\n", " "))
    return [
        "train", "draft", "--target", folders[0], "--draft", folders[1], "--data", str(text), "--out",
        str(tmp_path / "out"), "--steps", "4", "--batch", "4", "--length", "16", "--prompts", "3",
    ]  # fmt: skip


def test_the_command_writes_a_draft_to_speculate_with(
    given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "found.json"
    assert main([*given, "--divergence", "jsd", "--beta", "0.3", "--json", str(file)]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("before", "after", "at depth 1", "at depth 4", "temperature 1"))
    found = json.loads(file.read_text())
    assert found["configuration"]["target_text"] == 0.25
    assert all(0 < found[when][what] <= 1 for when in ("before", "after") for what in ("greedy", "expected"))
    assert found["before"] != found["after"]
    out = tmp_path / "out"
    assert {p.suffix for p in out.rglob("*") if p.is_file()} <= {".safetensors", ".json", ".jinja"}
    assert AutoModelForCausalLM.from_pretrained(out, dtype="auto").dtype == torch.float16
    target = AutoModelForCausalLM.from_pretrained(tmp_path / "target", dtype=torch.float64)
    spec = Speculator(drafter="model", draft_model=str(out), controller="fixed")
    options: dict[str, Any] = {"max_new_tokens": 24, "do_sample": False}
    plain = target.generate(prompts(2), **options)
    assert torch.equal(target.generate(prompts(2), assistant=spec, **options), plain)
    assert spec.stats.accepted > 0


def test_the_command_resumes_what_it_began_and_nothing_else(
    given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(given) == 0
    weights = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert main(given) == 2
    assert "--resume" in capsys.readouterr().err
    assert main([*given, "--resume", "--lr", "0.001"]) == 2
    assert "lr differs" in capsys.readouterr().err
    assert main([*given, "--resume"]) == 0
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == weights


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--on-policy", "0.8", "--target-text", "0.4"], "--on-policy 0.8 and --target-text 0.4"),
        (["--beta", "1"], "--beta 1"),
        (["--length", "100000"], "positions"),
        (["--length", "500"], "too few"),
        (["--length", "1"], "two tokens"),
        (["--data", "/no/such/file.txt"], "/no/such/file.txt"),
        (["--draft", "/no/such/draft"], "--draft /no/such/draft"),
        (["--json", "/no/such/folder/x.json"], "no folder /no/such/folder"),
    ],
)
def test_bad_input_is_refused_before_work_starts(
    more: list[str], message: str, given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*given, *more]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_draft_of_another_vocabulary_is_refused_by_name(
    given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = saved(tiny(dtype="float32", vocab=200), tmp_path / "other", tiny_tokenizer())
    assert main([*given, "--draft", other]) == 2
    assert f"--draft {other}" in (error := capsys.readouterr().err)
    assert "97 and 200" in error


def test_a_draft_of_as_many_other_tokens_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = tokenizer.get_vocab()
    a, b = "A", "B"
    swapped = words | {a: words[b], b: words[a]}
    stranger = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(swapped, [])))
    target = tiny(dtype="float32")
    name = saved(target, tmp_path / "draft", stranger)
    with pytest.raises(UnsupportedError, match=rf"{name}.*'A' is token {words[a]} .* token {words[b]} of the draft"):
        common_vocabulary(name, target, target, tokenizer)
    assert common_vocabulary(saved(target, tmp_path / "same", tokenizer), target, target, tokenizer) == VOCAB
    target.save_pretrained(tmp_path / "bare")
    assert common_vocabulary(str(tmp_path / "bare"), target, target, tokenizer) == VOCAB  # the sizes are all there is


def test_options_have_the_defaults_that_the_help_gives() -> None:
    from specplug_hf.training.draft_command import add_parser

    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    given = parser.parse_args(["draft", "--target", "builtin", "--draft", "builtin-draft", "--data", "a", "--out", "b"])
    assert (given.divergence, given.on_policy, given.target_text, given.steps) == ("kl", 0.5, None, 300)
