"""Training: data, the loop that goes on where it was interrupted, and heads for a tiny target in both stages."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from generate_tools import VOCAB, Calls, prompt, same, tiny_tokenizer
from safetensors.torch import load_file
from torch import Tensor, nn

from specplug import OptionError, Speculator
from specplug.cli import main
from specplug.drafters.mlp_speculator import MLPSpeculator
from specplug.mlp import Heads, HeadsConfig, read_config
from specplug_conformance.llama.tiny import tiny
from specplug_hf.training import mlp_speculator
from specplug_hf.training.checkpoint import claim
from specplug_hf.training.data import Corpus, read_corpus, token_stream, windows
from specplug_hf.training.heads import (
    acceptance_by_head,
    chain_length,
    heads_loss,
    hidden_states,
    hidden_states_and_laws,
)
from specplug_hf.training.loop import Loop, Plan
from specplug_hf.training.mlp_speculator import HeadsRecipe, train_heads

CONFIG = HeadsConfig(VOCAB, 64, inner_dim=16, n_predict=3, top_k_tokens_per_head=(3, 2, 1), tie_weights=True)
RECIPE = HeadsRecipe(steps=4, stage2_steps=4, batch=3, length=24, rate=1e-2, texts=6, prompt=8, new=16, rows=2)


@pytest.fixture
def target() -> Any:
    return tiny(dtype="float32")


def corpus(tokens: int = 900) -> Corpus:
    ids = torch.randint(2, VOCAB, (tokens,), generator=torch.Generator().manual_seed(5))
    return Corpus(ids[: tokens - 200], ids[tokens - 200 :])


# --- data


def test_windows_are_passes_over_the_stream_and_depend_on_their_number_alone() -> None:
    data = torch.arange(103)
    whole = windows(data, 10, 0, 27, seed=3)
    assert torch.equal(whole[5:16], windows(data, 10, 5, 11, seed=3))
    assert torch.equal(whole, whole[:, :1] + torch.arange(10))
    for one_pass in whole.split(9):
        assert len(one_pass[:, 0].unique()) == 9
        assert set((one_pass[:, 0] % 10).tolist()) == {int(one_pass[0, 0]) % 10}  # disjoint
    assert not torch.equal(whole[:9].sort(0).values, whole[9:18].sort(0).values) or not torch.equal(
        whole[:9], whole[9:18]
    )
    rows = windows(torch.arange(12).view(6, 2), 2, 0, 12, seed=3)
    assert sorted(rows[:6, 0].tolist()) == sorted(rows[6:, 0].tolist()) == [0, 2, 4, 6, 8, 10]
    with pytest.raises(ValueError, match="too short"):
        windows(torch.arange(15), 10, 0, 1, seed=0)


def test_a_corpus_is_the_files_tokens_and_holds_the_ends_out(tmp_path: Path, tokenizer: Any) -> None:
    for name, text in (("a.txt", "ab" * 50), ("b.txt", "xyz" * 100)):
        (tmp_path / name).write_text(text)
    found = read_corpus([str(tmp_path / "a.txt"), str(tmp_path / "b.txt")], tokenizer)
    first, second = (token_stream(tokenizer, [text]) for text in ("ab" * 50, "xyz" * 100))
    assert torch.equal(found.training, torch.cat([first[:95], second[:285]]))
    assert torch.equal(found.held_out, torch.cat([first[95:], second[285:]]))
    assert found.digest != Corpus(found.training, found.held_out + 1).digest
    assert found.digest == Corpus(found.training.clone(), found.held_out.clone()).digest


def test_texts_are_told_apart_by_the_end_token() -> None:
    tokenizer = tiny_tokenizer()
    assert len(token_stream(tokenizer, ["ab", "c"])) == 3
    tokenizer.eos_token = "<s>"
    assert token_stream(tokenizer, ["ab", "c"])[[2, 4]].tolist() == [1, 1]


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, tokenizer: Any) -> None:
    (tmp_path / "good.txt").write_text("abc" * 30)
    (tmp_path / "latin.txt").write_bytes(b"abc\xff")
    (tmp_path / "empty.txt").write_text(" \n")
    for name, why in (
        ("missing.txt", "No such file"),
        ("latin.txt", "not UTF-8 text: byte 3"),
        ("empty.txt", "no text"),
        (".", "a folder"),
    ):
        path = tmp_path / name
        with pytest.raises(OptionError, match=why) as caught:
            read_corpus([str(tmp_path / "good.txt"), str(path)], tokenizer)
        assert str(path) in str(caught.value)


# --- the loop


class Line(nn.Module):
    """Two numbers to be learnt, in two groups of one optimiser."""

    def __init__(self) -> None:
        super().__init__()
        self.slope, self.shift = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))

    def losses(self, step: int, generator: torch.Generator) -> Any:
        x = torch.rand(8, generator=generator)
        for part in (x[:4], x[4:]):
            yield ((self.slope * part + self.shift - 3 * part - 1) ** 2).sum() / 8


def line_loop(folder: Path, plan: Plan, rate: float = 0.1) -> Loop:
    model = Line()
    groups = [{"params": [model.slope], "lr": rate}, {"params": [model.shift], "lr": rate / 2}]
    return Loop(model, [torch.optim.AdamW(groups)], model.losses, plan, folder)


def test_the_loop_learns_resumes_and_leaves_no_pickle(tmp_path: Path) -> None:
    plan = Plan(300, seed=1, warmup=5)
    whole = line_loop(tmp_path / "whole", plan)
    whole.run()
    assert whole.model.slope.item() == pytest.approx(3, abs=0.1)
    for stop in (1, 40, 100, 100):
        part = line_loop(tmp_path / "parts", plan)
        part.run(stop_after=stop)
    assert part.step == 241
    last = line_loop(tmp_path / "parts", plan)
    last.run()
    assert all(
        torch.equal(one, two) for one, two in zip(whole.model.parameters(), last.model.parameters(), strict=True)
    )
    assert last.loss == whole.loss
    names = sorted(path.name for path in (tmp_path / "parts").iterdir())
    assert names == ["state-300.safetensors", "state.json"]


def test_rates_warm_up_and_fall_by_a_cosine_for_every_group(tmp_path: Path) -> None:
    plan = Plan(100, warmup=10, floor=0.1)
    rates = [plan.rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == rates[9] and rates[50] == pytest.approx(0.55)
    assert rates[99] == pytest.approx(0.1, abs=1e-3)
    loop = line_loop(tmp_path, plan)
    loop.run(stop_after=51)
    assert [g["lr"] for g in loop.optimizers[0].param_groups] == [pytest.approx(0.055), pytest.approx(0.0275)]


def test_gradients_are_cut(tmp_path: Path) -> None:
    model = Line()
    loop = Loop(
        model, [torch.optim.SGD(model.parameters(), lr=1.0)], lambda step, generator: [1e6 * model.slope.sum()],
        Plan(1, warmup=1), tmp_path,
    )  # fmt: skip
    loop.run()
    assert model.slope.item() == pytest.approx(-1.0, rel=1e-4)


def test_a_loss_that_is_no_number_stops_the_training_with_its_step(tmp_path: Path) -> None:
    model = Line()
    losses = lambda step, generator: [model.slope.sum() * (float("nan") if step == 2 else 1)]  # noqa: E731
    loop = Loop(model, [torch.optim.SGD(model.parameters(), lr=0.1)], losses, Plan(5, save_seconds=0.0), tmp_path)
    with pytest.raises(OptionError, match=r"loss of step 2 is nan.*smaller learning rate"):
        loop.run()
    assert json.loads((tmp_path / "state.json").read_text())["step"] == 2


def test_a_crash_while_saving_leaves_the_last_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan(6, warmup=1)
    line_loop(tmp_path, plan).run(stop_after=2)
    crashing = line_loop(tmp_path, plan)
    with monkeypatch.context() as patched:
        patched.setattr("specplug_hf.training.checkpoint.write_json", lambda path, values: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            crashing.run(stop_after=2)
    assert line_loop(tmp_path, plan).step == 2


def test_a_folder_is_claimed_by_one_configuration(tmp_path: Path) -> None:
    given = {"recipe": "x", "steps": 3, "widths": (1, 2)}
    claim(tmp_path / "new", given, resume=False)
    claim(tmp_path / "new", given, resume=True)
    claim(tmp_path / "other", given, resume=True)  # nothing to resume: it begins
    with pytest.raises(OptionError, match="--resume"):
        claim(tmp_path / "new", given, resume=False)
    with pytest.raises(OptionError, match="steps differs: it was 3 and is 4"):
        claim(tmp_path / "new", given | {"steps": 4}, resume=True)
    with pytest.raises(OptionError, match="more differs: it was None and is 1"):
        claim(tmp_path / "new", given | {"more": 1}, resume=True)
    with pytest.raises(OptionError, match="recipe differs"):
        claim(tmp_path / "new", {"steps": 3, "widths": (1, 2)}, resume=True)


# --- the heads' loss and acceptance


def random_heads(seed: int = 0, config: HeadsConfig = CONFIG) -> Heads:
    heads = Heads(config)
    heads.initialise(torch.Generator().manual_seed(seed))
    return heads


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("first", [0, 5])
def test_the_loss_is_that_of_what_stands_two_and_more_tokens_ahead(target: Any, first: int, soft: bool) -> None:
    heads, ids = random_heads().double(), corpus().training[:40].view(2, 20)
    hidden = hidden_states(target, ids).double()
    written = target(ids).logits.double().softmax(-1)
    losses = []
    for row in range(2):
        for place in range(first, 20 - 1 - 3):
            state = heads.start(hidden[row, place])
            for head in range(3):
                state = heads.step(state, ids[row, place + 1 + head], head)
                said = heads.logits(state, head).log_softmax(-1)
                ahead = ids[row, place + 2 + head]
                losses.append(-(written[row, place + 1 + head] * said).sum() if soft else -said[ahead])
    laws = written if soft else None
    torch.testing.assert_close(heads_loss(heads, hidden, ids, first, laws), torch.stack(losses).mean())


def test_hidden_states_and_laws_come_from_one_forward(target: Any) -> None:
    ids = corpus().training[:20].view(2, 10)
    with Calls(target.get_decoder()) as calls:
        hidden, laws = hidden_states_and_laws(target, ids)
    assert calls.count == 1
    assert torch.equal(hidden, hidden_states(target, ids))
    assert torch.equal(laws, target(ids).logits.softmax(-1))
    assert not target.get_decoder()._forward_hooks


def test_hidden_states_are_what_the_logits_are_made_of(target: Any) -> None:
    ids = corpus().training[:20].view(2, 10)
    made = target.get_output_embeddings()(hidden_states(target, ids))
    torch.testing.assert_close(made, target(ids).logits)


def test_acceptance_by_head_is_that_of_greedy_drafting(target: Any) -> None:
    heads, new = random_heads(), 12
    with torch.no_grad():  # heads that are right now and then: they say a fixed token, and so does the target
        target.lm_head.weight[7:9] *= 6
        heads.head[0].weight[7:9] *= 6
    prompts = corpus().training[:40].view(5, 8)
    shares = acceptance_by_head(heads, target, prompts, new)
    texts = target.generate(prompts, max_new_tokens=new, do_sample=False, eos_token_id=None)
    hidden = hidden_states(target, texts)
    reached, right = [0] * 3, [0] * 3
    for row in range(5):
        for place in range(7, texts.shape[1] - 1 - 3):
            state, token = heads.start(hidden[row, place]), texts[row, place + 1]
            for head in range(3):
                state = heads.step(state, token, head)
                token = heads.logits(state, head).argmax()  # its own token goes into the next head
                reached[head] += 1
                if token != texts[row, place + 2 + head]:
                    break
                right[head] += 1
    assert right[0] > 0 and reached[1] > right[1]
    assert shares == pytest.approx([r / max(1, n) for r, n in zip(right, reached, strict=True)])
    assert chain_length([0.5, 0.5]) == pytest.approx(1.75)


# --- both stages


def weights_of(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def interrupt(monkeypatch: pytest.MonkeyPatch, where: str, count: int) -> None:
    """Make the `count`-th call of `where` in the recipe's modules an interruption."""
    module, name = where.rsplit(".", 1)
    import importlib

    owner = importlib.import_module(module)
    real, calls = getattr(owner, name), iter(range(count))

    def interrupted(*args: Any, **more: Any) -> Any:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return real(*args, **more)

    monkeypatch.setattr(owner, name, interrupted)


def test_interrupted_and_resumed_is_as_if_nothing_had_happened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: Any
) -> None:
    monkeypatch.setattr(mlp_speculator, "Plan", partial(Plan, save_seconds=0.0))
    train = lambda name: train_heads(CONFIG, RECIPE, target, corpus(), tmp_path / name, torch.float32)  # noqa: E731
    whole = train("whole")
    for where, count, state in (
        ("specplug_hf.training.heads.heads_loss", 2, "stage-1/state-2.safetensors"),
        ("specplug_hf.training.continuations.extend", 1, "texts/continuations-0.safetensors"),
        ("specplug_hf.training.heads.heads_loss", 3, "stage-2/state-3.safetensors"),
    ):
        with monkeypatch.context() as patched:
            interrupt(patched, where, count)
            with pytest.raises(KeyboardInterrupt):
                train("parts")
        assert (tmp_path / "parts" / "training" / state).exists()
        assert not (tmp_path / "parts" / "model.safetensors").exists()
    assert train("parts") == whole
    assert weights_of(tmp_path / "parts") == weights_of(tmp_path / "whole")
    suffixes = {path.suffix for path in (tmp_path / "parts").rglob("*") if path.is_file()}
    assert suffixes == {".safetensors", ".json"}
    assert [result.name for result in whole] == ["stage 1", "stage 2"]


def test_stage_two_learns_what_the_target_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: Any) -> None:
    seen: list[tuple[int, Tensor, int]] = []
    real = mlp_speculator.Stage

    class Watched(real):  # type: ignore[valid-type,misc]
        def __init__(
            self, heads: Heads, model: Any, data: Tensor, rows: int, length: int, first: int, *rest: Any
        ) -> None:
            seen.append((length, data, first))
            super().__init__(heads, model, data, rows, length, first, *rest)

    monkeypatch.setattr(mlp_speculator, "Stage", Watched)
    data = corpus()
    train_heads(CONFIG, RECIPE, target, data, tmp_path, torch.float32)
    assert seen[0][0] == 24 and torch.equal(seen[0][1], data.training) and seen[0][2] == 0
    length, texts, first = seen[1]
    assert (length, texts.shape, first) == (24, (6, 24), 7)
    greedy = target.generate(texts[:2, :8], max_new_tokens=16, do_sample=False, eos_token_id=None)
    assert torch.equal(texts[:2], greedy)
    drawn = target.generate(texts[2:4, :8], max_new_tokens=16, do_sample=False, eos_token_id=None)
    assert not torch.equal(texts[2:4], drawn)


def test_heads_learn_what_can_be_learnt(tmp_path: Path, target: Any) -> None:
    with torch.no_grad():  # a target whose next token follows from the last one alone
        for layer in target.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    recipe = HeadsRecipe(
        steps=20, stage2_steps=120, batch=8, length=24, rate=1e-2, stage2_rate=1e-2, texts=48, prompt=8, new=24, rows=12
    )
    before = acceptance_by_head(random_heads(), target, corpus().held_out[:80].view(10, 8), 24)
    results = train_heads(CONFIG, recipe, target, corpus(4000), tmp_path, torch.float32)
    assert before[0] < 0.1 and results[1].acceptance[0] > 0.6
    assert results[1].loss < results[0].loss


# --- the command


@pytest.fixture
def folder(tmp_path: Path, target: Any, tokenizer: Any) -> Path:
    target.save_pretrained(tmp_path / "target")
    tokenizer.save_pretrained(tmp_path / "target")
    (tmp_path / "text.txt").write_text("def f(a, b): return a + b\n".replace(" ", "_").replace("\n", ";") * 60)
    return tmp_path


def command(folder: Path, *more: str) -> int:
    options = ["--target", str(folder / "target"), "--data", str(folder / "text.txt"), "--out", str(folder / "out")]
    sizes = [
        "--steps",
        "2",
        "--stage2-steps",
        "2",
        "--batch",
        "2",
        "--length",
        "24",
        "--texts",
        "2",
        "--prompt",
        "8",
        "--new",
        "12",
        "--inner-dim",
        "16",
    ]
    return main(["train", "mlp-speculator", *options, *sizes, *more])


def test_the_command_trains_heads_that_the_target_takes(
    folder: Path, target: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(folder, "--json", str(folder / "found.json"), "--tie-weights", "--soft-labels") == 0
    printed = capsys.readouterr().out
    assert "stage 2" in printed and "mlp_speculator:path=" in printed
    found = json.loads((folder / "found.json").read_text())
    assert [len(stage["acceptance"]) for stage in found["stages"]] == [3, 3]
    assert (
        found["configuration"]["soft"]
        and found["configuration"]["inner_dim"] == 16
        and found["configuration"]["tie_weights"]
    )
    drafter = MLPSpeculator(str(folder / "out"))
    assert (drafter.config.n_predict, drafter.config.widths) == (3, (5, 4, 3))
    plain = target.generate(**prompt(2, "left"), max_new_tokens=12)
    same(target.generate(**prompt(2, "left"), max_new_tokens=12, assistant=Speculator(drafter=drafter)), plain)


def test_the_command_goes_on_from_given_heads_with_texts_as_greedy_as_asked(folder: Path, target: Any) -> None:
    assert command(folder, "--tie-weights", "--weights", "float32") == 0
    given = (folder / "out").rename(folder / "given")
    more = ["--start", str(given), "--temperature", "0", "--texts", "96", "--json", str(folder / "found.json")]
    assert command(folder, *more, "--weights", "float32", "--stage2-lr", "1e-30") == 0
    stages = json.loads((folder / "found.json").read_text())["stages"]
    assert [(stage["name"], stage["loss"] is None) for stage in stages] == [("start", True), ("stage 2", False)]
    config = read_config(folder / "out")
    assert config == read_config(given) and config.tie_weights and config.inner_dim == 16
    assert stages[0]["acceptance"] == stages[1]["acceptance"]
    for name, tensor in load_file(given / "model.safetensors").items():  # a rate of nothing: the heads that were given
        torch.testing.assert_close(load_file(folder / "out" / "model.safetensors")[name], tensor)
    texts = load_file(folder / "out" / "training" / "texts" / "continuations-1.safetensors")["ids"]
    greedy = target.generate(texts[:, :8], max_new_tokens=12, do_sample=False, eos_token_id=None)
    assert torch.equal(texts, greedy)


def test_the_command_resumes_only_what_it_began(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(folder) == 0
    first = weights_of(folder / "out")
    assert command(folder) == 2
    assert "--resume" in capsys.readouterr().err
    assert command(folder, "--resume") == 0
    assert weights_of(folder / "out") == first
    assert command(folder, "--resume", "--lr", "0.5") == 2
    assert "rate differs: it was 0.001 and is 0.5" in capsys.readouterr().err
    (folder / "text.txt").write_text("something_else;" * 200)
    assert command(folder, "--resume") == 2
    assert "data differs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (["--target", "./nowhere"], "No model folder at nowhere"),
        (["--length", "600"], "--length: 600 tokens, but the target takes 512"),
        (["--new", "505"], "--prompt plus --new: 513 tokens"),
        (["--length", "4"], "--length: 4 tokens are too few for 3 heads"),
        (["--prompt", "100"], "held out"),
        (["--start", "./nowhere"], "no folder nowhere"),
        (["--top-k", "2,2"], "needs one entry for each"),
        (["--json", "/nowhere/found.json"], "/nowhere"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_trained(
    folder: Path, more: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(folder, *more) == 2
    assert why in capsys.readouterr().err
    assert not (folder / "out").exists()


def test_the_built_in_corpus_is_split_by_file(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from specplug_hf.demo import corpus as library

    files = [(f"{i}.py", "abc"[i % 3] * (i + 1)) for i in range(60)]
    monkeypatch.setattr(library, "library_files", lambda: files)
    found = read_corpus(["builtin"], tokenizer)
    held = [text for name, text in files if library.is_held_out(name)]
    assert held and torch.equal(found.held_out, token_stream(tokenizer, held))
    assert len(found.training) + len(found.held_out) == sum(len(text) for _, text in files)
