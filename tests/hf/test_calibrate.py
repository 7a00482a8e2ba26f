"""`specplug calibrate` on tiny random models: the whole command, and that a Speculator plans with what it wrote."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from generate_tools import Models, prompt, tiny_tokenizer

import specplug
from specplug import OptionError, Speculator
from specplug.cli import main
from specplug.cost.base import Load
from specplug.cost.fitted import OVERHEAD, TARGET
from specplug.cost.profile import Profile, Seen, read_profile
from specplug.drafters import PromptLookup, SelfDraft
from specplug.kv_policies import Streaming
from specplug.round import Seconds
from specplug.verify import Verdict
from specplug_hf.calibration import room, sweep
from specplug_hf.calibration.clock import Clock
from specplug_hf.calibration.grid import Cell, corners_first, tree_of
from specplug_hf.calibration.rounds import Rounds
from specplug_hf.calibration.tally import Tally
from specplug_hf.calibration.times import Job, jobs, samples
from specplug_hf.identity import identity_of, name_of, weight_bytes

SMALL = [
    "--batch",
    "1,2",
    "--context",
    "12,24",
    "--nodes",
    "1,2,4",
    "--kv-policy",
    "streaming:sink=2,window=6",
    "--quiet",
]


@pytest.fixture(scope="module")
def folders(fp32: Models, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny pair and texts on disk."""
    base = tmp_path_factory.mktemp("calibrate")
    for name in ("target", "draft"):
        getattr(fp32, name).save_pretrained(base / name)
        tiny_tokenizer().save_pretrained(base / name)
    (base / "texts").mkdir()
    for number in range(3):
        (base / "texts" / f"{number}.txt").write_text(f"line {number}: some words, some more words. " * 12)
    return {"base": base, "target": base / "target", "draft": base / "draft", "texts": base / "texts"}


def calibrate(folders: dict[str, Path], out: Path, *more: str) -> int:
    models = ["--model", str(folders["target"]), "--draft", str(folders["draft"]), "--prompts", str(folders["texts"])]
    return main(["calibrate", *models, *SMALL, "--out", str(out), *more])


@pytest.fixture(scope="module")
def measured(folders: dict[str, Path]) -> Path:
    out = folders["base"] / "profile.json"
    assert calibrate(folders, out, "--budget-seconds", "40") == 0
    return out


def test_a_profile_has_times_errors_and_acceptance(measured: Path, fp32: Models) -> None:
    profile = read_profile(measured)
    draft, own = f"ModelDraft[{name_of(fp32.draft)}, full]", "SelfDraft[streaming 8]"
    assert (profile.model, profile.device, profile.dtype) == identity_of(fp32.target)
    assert profile.device.startswith("cpu") and profile.dtype == "float32" and profile.measured
    assert {"torch", "transformers", "specplug", "threads"} <= set(profile.versions)
    assert {TARGET, OVERHEAD, draft, own, PromptLookup().key} <= set(profile.cost.coefficients)
    assert {s.load.tokens // s.load.rows for s in profile.samples if s.part == TARGET} == {1, 2, 4}
    assert {s.load.rows for s in profile.samples} == {1, 2}
    assert all(s.seconds > 0 for s in profile.samples)
    assert all(0 <= error.median <= error.worst for error in profile.errors.values()) and TARGET in profile.errors
    assert profile.cost.draft(PromptLookup().key, Load(1, 1, 9)) == 0
    for key in (draft, own, PromptLookup().key):
        assert set(profile.acceptance[key]) == {"greedy", "sampled"}
    for seen in profile.acceptance[draft].values():
        assert list(seen.ranks) == sorted(seen.ranks, reverse=True) and len(seen.ranks) == 16 and not seen.depths
        assert sum(seen.ranks) <= 1 + 1e-9 and seen.trials > 0  # as many as the time allows
    assert profile.acceptance[PromptLookup().key]["greedy"].depths


def test_the_first_plan_uses_the_profile(measured: Path, fp32: Models) -> None:
    """Where the profile says that drafting pays, the first round drafts; where it says the contrary, none does at first."""
    found = read_profile(measured)
    key = f"ModelDraft[{name_of(fp32.draft)}, full]"
    flat = {TARGET: 1e-2, OVERHEAD: 1e-4, key: 3e-3}
    for chance, expected in ((0.95, "ModelDraft"), (0.01, "none")):
        profile = altered(found, flat, {key: {"greedy": Seen((chance, 0.01), trials=400)}})
        spec = Speculator(drafter="model", draft_model=fp32.draft, profile=profile)
        fp32.target.generate(**prompt(1), assistant=spec, max_new_tokens=3)
        assert {arm.partition("/")[0] for arm in spec.stats.rounds_by_arm} == {expected}


def altered(found: Profile, seconds: dict[str, float], acceptance: dict[str, dict[str, Seen]]) -> Profile:
    """`found`'s identity with times that do not depend on the load."""
    width = len(found.cost.coefficients[TARGET])
    coefficients = {part: (value, *[0.0] * (width - 1)) for part, value in seconds.items()}
    return Profile(
        found.model, found.device, found.dtype, found.kernel, type(found.cost)(coefficients), acceptance=acceptance
    )


@pytest.mark.parametrize(("field", "value"), [("model", "Other-1x2x3"), ("device", "cuda"), ("dtype", "bfloat16")])
def test_a_profile_of_something_else_is_refused_before_anything_runs(
    measured: Path, fp32: Models, field: str, value: str, tmp_path: Path
) -> None:
    plain = json.loads(measured.read_text()) | {field: value}
    path = tmp_path / "other.json"
    path.write_text(json.dumps(plain))
    spec = Speculator(drafter="prompt_lookup", profile=path)
    with pytest.raises(OptionError, match=f"measured with {field} '{value}'.*specplug calibrate"):
        fp32.target.generate(**prompt(1), assistant=spec, max_new_tokens=3)


def test_the_time_is_kept_and_what_is_missing_is_said(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, json_file = tmp_path / "p.json", tmp_path / "all.json"
    more = ["--budget-seconds", "1", "--batch", "1,2,3,4,5,6,7,8", "--context", "8,16,24,32", "--json", str(json_file)]
    assert calibrate(folders, out, *more) == 0
    listed = json.loads(json_file.read_text())
    assert listed["seconds"] < 6
    assert listed["left_out"] and all(f"left out: {line}" in capsys.readouterr().out for line in listed["left_out"][:1])
    assert read_profile(out).samples


def test_what_is_too_large_is_left_out_by_name(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "free_bytes", lambda device: 60_000.0)
    assert calibrate(folders, tmp_path / "p.json", "--context", "12,300,99999", "--budget-seconds", "4") == 0
    printed = capsys.readouterr().out
    assert "batch 2 x 300 tokens: needs about" in printed and "GiB are free" in printed
    assert "batch 1 x 99999 tokens: the model has" in printed


def test_memory_that_runs_out_is_no_end() -> None:
    models: Any = SimpleNamespace(target=SimpleNamespace(device=torch.device("cpu")))

    def run(error: Exception) -> Any:
        def fail(batch: Any) -> None:
            raise error

        return sweep.attempt(models, lambda: None, fail)  # type: ignore[arg-type, return-value]

    assert run(torch.OutOfMemoryError()) == run(MemoryError()) == "out of memory"
    assert run(RuntimeError("not enough memory: you tried to allocate")) == "out of memory"
    assert run(OptionError("too short")) == "too short"
    with pytest.raises(RuntimeError, match="something else"):
        run(RuntimeError("something else"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--batch", "0"], "--batch '0': it must be a positive whole number"),
        (["--budget-seconds", "x"], "--budget-seconds 'x'"),
        (["--kv-policy", "streming"], "Did you mean 'streaming'"),
        (["--prompts", "/nowhere"], "must be a folder with"),
        (["--out", "/nowhere/p.json"], "there is no such folder"),
        (["--context", "9999"], "Nothing was measured. batch 1 x 9999 tokens: "),
    ],
)
def test_options_that_make_no_sense_are_one_line(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    assert calibrate(folders, tmp_path / "p.json", *more) == 2
    assert message in capsys.readouterr().err


def test_corners_come_first_and_every_cell_once() -> None:
    cells = corners_first([1, 2, 4, 8], [256, 1024, 4096])
    assert cells[0] == Cell(1, 256) and cells[1] == Cell(8, 4096)
    assert set(cells[:4]) == {Cell(r, c) for r in (1, 8) for c in (256, 4096)}
    assert len(cells) == len(set(cells)) == 12
    assert corners_first([4], [64]) == [Cell(4, 64)]


def test_trees_have_the_nodes_that_were_asked_for() -> None:
    assert [tree_of(n).num_nodes for n in (1, 2, 3, 5, 9, 17, 33)] == [1, 2, 3, 5, 9, 17, 33]
    assert tree_of(3).is_chain and not tree_of(9).is_chain


def test_parts_of_a_round_add_up() -> None:
    plain, chain = jobs([SelfDraft(Streaming(4, 28))], [1, 3])
    assert (plain.place, chain.shape.depth, chain.budget) == (0, 2, 32)
    timed = {
        plain: rounds(3, Seconds(draft=0.0, verify=0.009, commit=0.0004, other=0.0006)),
        chain: rounds(3, Seconds(draft=0.006, verify=0.012, commit=0.001, other=0.0005, plan=0.0005), depth=2),
        Job(1, tree_of(2)): rounds(1, Seconds(9.0, 9.0, 9.0, 9.0), depth=1),  # one round says nothing
    }
    found = {(s.part, s.load): s.seconds for s in samples(timed, 2, ["NoDraft", "self"])}
    expected = {
        (OVERHEAD, Load(2, 2, 0)): 0.001,
        (TARGET, Load(2, 2, 200)): 0.009,
        (TARGET, Load(2, 6, 200)): 0.013,
        ("self", Load(2, 2, 64)): 0.003,
    }
    assert found == pytest.approx(expected)
    assert samples({chain: timed[chain]}, 2, ["NoDraft", "self"]) == []


def test_a_round_is_the_sum_of_its_parts_unless_it_was_timed_whole() -> None:
    found = rounds(2, Seconds(draft=0.006, verify=0.012, commit=0.001, other=0.0005, plan=0.0005), depth=3)
    found.add(SimpleNamespace(seconds=Seconds(0.003, 0.02, 0.004, 0.0), batch=SimpleNamespace(context=7)), 0.05)
    assert len(found) == 3 and found.contexts == [100, 100, 7]
    assert found.draft == [0.006, 0.006, 0.003] and found.steps == [0.002, 0.002, 0.001]
    assert found.own == pytest.approx([0.002, 0.002, 0.004]) and found.whole == pytest.approx([0.02, 0.02, 0.05])
    assert found.rest == pytest.approx(0.014)
    assert rounds(2, Seconds(1.0, 1.0, 1.0, 1.0)).steps == []


def rounds(count: int, seconds: Seconds, depth: int = 0) -> Rounds:
    """`count` rounds that took as long, each behind 100 tokens."""
    found = Rounds(depth)
    for _ in range(count):
        found.add(SimpleNamespace(seconds=seconds, batch=SimpleNamespace(context=100)))
    return found


def test_ranks_and_depths_are_counted() -> None:
    def finished(paths: list[list[int]], valid: Any = None) -> Any:
        width = max(map(len, paths))
        return SimpleNamespace(
            batch=SimpleNamespace(num_rows=len(paths)),
            trees=SimpleNamespace(num_nodes=4, valid=valid),
            verdict=Verdict(
                path=torch.tensor([p + [p[-1]] * (width - len(p)) for p in paths]),
                num_accepted=torch.tensor([len(p) - 1 for p in paths]),
                bonus=torch.zeros(len(paths), dtype=torch.int64),
            ),
        )

    tally = Tally()
    for paths in ([[0, 1], [0]], [[0, 3], [0, 1]]):
        tally.add(finished(paths))
    assert tally.by_rank(3) == Seen((0.5, 0.125, 0.125), (), 1.0, 4)  # made non-rising
    tally = Tally()
    for _ in range(8):
        proposed = torch.tensor([[True, True, True, True], [True, False, False, False]])
        tally.add(finished([[0, 1, 2], [0]], proposed))
    assert tally.by_depth() == Seen((0.5,), (0.5, 1.0, 0.0), 0.5, 16)


def test_a_clock_runs_out() -> None:
    time = [0.0]
    clock = Clock(10, lambda: time[0])
    time[0] = 4.0
    half = clock.part(0.5)
    assert (clock.left, half.left, clock.over) == (6.0, 3.0, False)
    time[0] = 7.5
    assert half.over and not clock.over


def test_a_model_says_what_a_forward_reads(fp32: Models) -> None:
    model = fp32.target
    everything = sum(p.numel() * p.element_size() for p in model.parameters())
    table = model.get_input_embeddings().weight
    tied = model.get_output_embeddings().weight is table
    assert weight_bytes(model) == everything - (0 if tied else table.numel() * table.element_size())
    assert specplug is not None
