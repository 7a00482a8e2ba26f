"""`specplug roofline` on a tiny shape and a CPU: the whole command, its limits, what it leaves out, and what an interruption
leaves behind."""

from __future__ import annotations

import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from specplug import OptionError
from specplug.cli import main
from specplug.cost import Load, Roofline
from specplug.cost.presets import device, model_shape
from specplug.drafters import SelfDraft
from specplug.kv_policies import Streaming
from specplug.tree import ROOT_ONLY
from specplug.trees import Chain
from specplug_hf.calibration import room, stage
from specplug_hf.calibration.clock import Clock
from specplug_hf.calibration.grid import Cell
from specplug_hf.calibration.stage import NOBODY, Stage, perform
from specplug_hf.commands.batches import Prompts
from specplug_hf.commands.models import Models, load
from specplug_hf.commands.options import ModelOptions
from specplug_hf.host import HFHost
from specplug_hf.roofline import measurement, memory, report, survey
from specplug_hf.roofline.bandwidth import copy_bandwidth
from specplug_hf.roofline.grid import CELLS, GOALS, cells
from specplug_hf.roofline.limits import Limits, Measured
from specplug_hf.roofline.model import configuration, random_model, shape_of
from specplug_hf.roofline.plain import StepClock, plain_steps
from specplug_hf.roofline.prompts import borrowed, owned
from specplug_hf.roofline.rounds import ROOM, WARM, Cast, timed
from specplug_hf.roofline.wrong import WrongSelfDraft

TINY = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "vocab_size": 64,
    "max_position_embeddings": 512,
    "dtype": "float32",
}
PARTS = [
    "verify, 1 node",
    "draft, a step",
    "verify, 3 nodes",
    "verify, 5 nodes",
    "none, a round",
    "transformers, a step",
]
# The roofline of one H200 (computed: 4.3 TB/s, 790 TFLOP/s), Llama-3.1-8B in bf16, window 512. Rows, context in k:
# decode ms, draft ms, verify ms of 5 and of 17 nodes, speed-up at acceptance .7, .8, .9
PUBLISHED = {
    (1, 32): (4.49, 3.51, 4.5, 4.5, 0.95, 1.01, 1.07),
    (8, 16): (7.49, 3.62, 7.5, 7.5, 1.15, 1.24, 1.40),
    (8, 32): (11.5, 3.62, 11.5, 11.5, 1.34, 1.52, 1.82),
    (8, 64): (19.5, 3.62, 19.5, 19.5, 1.63, 1.93, 2.48),
    (32, 4): (7.49, 3.99, 7.5, 14.4, 1.11, 1.18, 1.32),
    (32, 16): (19.5, 3.99, 19.5, 26.3, 1.57, 1.85, 2.30),
    (30, 32): (33.5, 3.96, 33.5, 39.7, 1.88, 2.32, 3.07),
    (15, 64): (33.5, 3.72, 33.5, 34.8, 1.92, 2.37, 3.25),
}


@pytest.fixture(scope="module")
def shape_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("roofline") / "config.json"
    path.write_text(json.dumps(TINY))
    return path


@pytest.fixture(scope="module")
def models() -> Models:
    return Models(random_model(TINY, torch.device("cpu")), None, None, None, "tiny")


@pytest.fixture(autouse=True)
def _no_collections(monkeypatch: pytest.MonkeyPatch) -> None:
    """A collection takes half a second in a process as large as this one, and a tiny cache needs none."""
    monkeypatch.setattr(memory.gc, "collect", lambda: 0)


def roofline(shape_file: Path, out: Path, *more: str) -> int:
    sizes = ["--nodes", "3,5", "--window", "24", "--cells", "2x96,1x64"]
    where = ["--device", "cpu", "--dtype", "float32", "--model", str(shape_file), "--json", str(out)]
    return main(["roofline", *where, *sizes, *more])


@pytest.mark.parametrize("cell", PUBLISHED)
def test_limits_are_the_published_roofline(cell: tuple[int, int]) -> None:
    rows, context = cell
    limits = Limits(Roofline(model_shape("llama-3.1-8b"), device("h200")), Cell(rows, 1024 * context), 512)
    decode, draft, *verifies = PUBLISHED[cell][:4]
    assert 1e3 * limits.plain == pytest.approx(decode, rel=5e-3)
    assert 1e3 * limits.draft == pytest.approx(draft, abs=0.006)
    assert [1e3 * limits.verify(nodes) for nodes in (5, 17)] == pytest.approx(verifies, abs=0.06)
    assert [limits.best(a, 12).speedup for a in (0.7, 0.8, 0.9)] == pytest.approx(PUBLISHED[cell][4:], abs=0.0051)


def test_the_default_cells_are_the_published_ones_and_the_goals_come_first() -> None:
    listed = cells(CELLS)
    assert tuple(listed[:2]) == GOALS
    assert {(c.rows, c.context // 1024) for c in listed} == {*PUBLISHED, (1, 4)} and len(listed) == 9


def test_measured_times_that_are_the_limits_give_the_theoretical_speedup() -> None:
    limits = Limits(Roofline(model_shape("llama-3.1-8b"), device("h200")), Cell(30, 32768), 512)
    own = Measured({nodes: limits.verify(nodes) for nodes in range(1, 14)}, limits.draft, 0.0)
    for acceptance in (0.7, 0.8, 0.9):
        theory, found = limits.best(acceptance, 12), Limits(own, limits.cell, 512).best(acceptance, 12)
        assert (found.size, found.tokens) == (theory.size, theory.tokens)
        assert found.speedup == pytest.approx(theory.speedup, rel=1e-3)
    slower = Measured(own.verify, limits.draft, 5e-3)  # a round's own cost counts once a round
    choice = Limits(slower, limits.cell, 512).best(0.8, 12)
    assert choice.seconds == pytest.approx(
        choice.size * limits.draft + slower.target(Load(30, 30 * (choice.size + 1), 0)) + 5e-3
    )


def test_between_measured_nodes_time_is_linear() -> None:
    measured = Measured({1: 1.0, 5: 2.0, 9: 6.0}, 0.5, 0.0)
    assert [measured.target(Load(2, 2 * nodes, 0)) for nodes in (1, 2, 5, 8, 9, 12)] == [1.0, 1.25, 2.0, 5.0, 6.0, 6.0]


def test_the_whole_command(shape_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "roofline.json"
    assert roofline(shape_file, out) == 0
    printed, listed = capsys.readouterr().out, json.loads(out.read_text())
    for column in (*report.PARTS, *report.SPEEDUPS):
        assert column in printed
    assert report.RANDOM in printed and listed["weights"] == report.RANDOM
    assert "batch 8 x 32768 tokens: 85 % of the theoretical speed-up" in printed and "not measured" in printed
    assert listed["finished"] and not listed["left_out"] and listed["copy_bytes_a_second"] > 0
    assert [(cell["rows"], cell["context"]) for cell in listed["cells"]] == [(2, 96), (1, 64)]
    shape = Roofline(shape_of(TINY, "tiny"), device("h200"))
    for cell in listed["cells"]:
        parts = {part["name"]: part for part in cell["parts"]}
        assert list(parts) == PARTS and not cell["left_out"]
        assert all(part["seconds"]["median"] > 0 and part["seconds"]["n"] >= 2 for part in parts.values())
        limits = Limits(shape, Cell(cell["rows"], cell["context"]), 24)
        assert parts["verify, 5 nodes"]["limit"] == limits.verify(5)
        assert parts["transformers, a step"]["limit"] == parts["none, a round"]["limit"] == limits.plain
        assert parts["draft, a step"]["limit"] == limits.draft
        for part in parts.values():
            assert part["over_limit"] == pytest.approx(part["seconds"]["median"] / part["limit"])
            assert part["at_copy"] > part["limit"]  # this machine copies more slowly than an H200
        assert [line["acceptance"] for line in cell["speedups"]] == [0.7, 0.8, 0.9]
        for line in cell["speedups"]:
            plain, none = (parts[name]["seconds"]["median"] for name in ("transformers, a step", "none, a round"))
            assert line["over_transformers"] == pytest.approx(line["tokens"] * plain / line["seconds"])
            assert line["over_none"] == pytest.approx(line["tokens"] * none / line["seconds"])
            assert line["share"] == pytest.approx(min(line["over_transformers"], line["over_none"]) / line["theory"])
            assert 1 <= line["gamma"] <= 4 and line["theory"] == limits.best(line["acceptance"], 12).speedup
        assert cell["whole"]["gamma"] == cell["speedups"][1]["gamma"]
        assert cell["whole"]["parts"] == cell["speedups"][1]["seconds"]


def test_parts_of_a_round_are_shared_out(models: Models) -> None:
    cast, prompt = Cast(models, WrongSelfDraft(Streaming.within(24)), "auto"), borrowed(models.target, Cell(2, 96))
    found = timed(cast, prompt, Chain(4).build(), Clock(60.0), parts=True, rounds=3)
    assert len(found) == 3 and found.depth == 4
    for draft, verify, own, whole in zip(found.draft, found.verify, found.own, found.whole, strict=True):
        assert min(draft, verify, own) > 0 and draft + verify + own < whole
    assert found.steps == [seconds / 4 for seconds in found.draft]
    plain = timed(cast, borrowed(models.target, Cell(2, 96)), ROOT_ONLY, Clock(60.0), parts=False, rounds=3)
    assert plain.depth == 0 and plain.steps == []


def test_drafts_are_wrong_and_every_round_commits_one_token(models: Models) -> None:
    """Also where the draft reads everything, so that each of its own tokens would be accepted."""
    for drafter, expected in ((WrongSelfDraft(Streaming.within(400)), 1), (SelfDraft(Streaming.within(400)), 5)):
        counts: list[int] = []

        def play(stage: Stage, counts: list[int] = counts) -> None:
            while (finished := stage.round(NOBODY + 1, Chain(4).build())) is not None:
                counts.extend(finished.commit.counts)

        perform(models, borrowed(models.target, Cell(2, 96)), [drafter], 20, play)  # type: ignore[arg-type]
        assert sorted(counts)[len(counts) // 2] == expected


def test_parts_wait_outside_of_what_is_recorded(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    """A draft that waited for the device inside of a recording could not be recorded; one that is timed whole must not wait."""
    order: list[str] = []
    monkeypatch.setattr(stage, "_runs_behind", lambda _: True)
    monkeypatch.setattr(torch.cpu, "synchronize", lambda _: order.append("wait"))

    def record(host: HFHost, drafters: Any) -> None:
        for drafter in drafters:
            drafter.draft = _noted(drafter.draft, order)

    monkeypatch.setattr(HFHost, "record", record)
    cast = Cast(models, WrongSelfDraft(Streaming.within(24)), "auto")
    for parts, expected in ((True, ["begin", "end", "wait", "wait"]), (False, ["begin", "end"])):
        order.clear()
        timed(cast, borrowed(models.target, Cell(1, 64)), Chain(2).build(), Clock(60.0), parts, rounds=2)
        assert order == expected * (WARM + 2)


def _noted(draft: Any, order: list[str]) -> Any:
    def noted(request: Any) -> Any:
        order.append("begin")
        trees = draft(request)
        order.append("end")
        return trees

    return noted


def test_a_borrowed_context_is_in_the_cache_and_takes_one_rows_memory(models: Models) -> None:
    """What is taken over is as long as the prompt, row by row; what it is taken from is not."""
    prompt, contexts = borrowed(models.target, Cell(3, 96)), []
    entries = prompt.cache.layers[0].keys.untyped_storage().nbytes()
    assert entries == 2 * 2 * 96 * 8 * 4  # keys and values of one row and layer: heads, tokens, width, bytes
    assert len({layer.keys.untyped_storage().data_ptr() for layer in prompt.cache.layers}) == 1

    def play(stage: Stage) -> None:
        for _ in range(2):
            finished = stage.round(NOBODY, ROOT_ONLY)
            assert finished is not None
            contexts.append(finished.batch.lengths.tolist())

    perform(models, prompt, [SelfDraft(Streaming.within(24))], ROOM, play)  # type: ignore[arg-type]
    assert contexts == [[96] * 3, [97] * 3]


def test_transformers_own_cache_is_whole(models: Models) -> None:
    prompt = owned(models.target, Cell(2, 64))
    assert prompt.cache.get_seq_length() == 63
    assert len({layer.keys.untyped_storage().data_ptr() for layer in prompt.cache.layers}) == 2
    assert prompt.cache.layers[0].keys.untyped_storage().nbytes() == 2 * 2 * 63 * 8 * 4  # of both rows
    assert len(plain_steps(models.target, prompt, Clock(60.0), steps=5)) == 5
    assert prompt.cache.get_seq_length() == 63 + 1 + 2 + 5  # the prompt's last token, warm and timed steps
    assert len(plain_steps(models.target, owned(models.target, Cell(2, 64)), Clock(0.0))) == 1  # at least one


def test_a_step_lasts_from_one_end_to_the_next() -> None:
    watch = StepClock(3, Clock(60.0))
    watch.marks = [0.0, 1.0, 3.0, 6.0, 10.0, 15.0]
    assert watch.seconds == [3.0, 4.0, 5.0]  # behind the first two steps


def test_a_cell_that_does_not_fit_is_said_and_not_tried(
    shape_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []
    for name in ("borrowed", "owned"):
        make = getattr(survey, name)
        monkeypatch.setattr(survey, name, lambda model, cell, make=make: (tried.append(cell), make(model, cell))[1])
    a_token = 2 * 2 * 2 * 8 * 4  # bytes: both, layers, heads, width
    monkeypatch.setattr(room, "free_bytes", lambda _: (64 + 32 + 16 + ROOM) * a_token)  # a row, a layer twice
    assert roofline(shape_file, tmp_path / "r.json", "--cells", "2x96,1x64,1x999") == 0
    assert set(tried) == {Cell(1, 64)}  # not even the one that warms up
    large, _, long = json.loads((tmp_path / "r.json").read_text())["cells"]
    assert not large["parts"] and all("of memory" in line for line in large["left_out"][:-1])
    assert (
        len([line for line in large["left_out"] if "GiB are free" in line]) == 5
    )  # rounds of 1, 3, 5; none; transformers
    assert all("the model has 512 positions" in line for line in long["left_out"][:-1])
    assert "left out: transformers, a step: needs" in capsys.readouterr().out


def test_what_the_time_does_not_allow_is_said(
    shape_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        measurement, "Clock", lambda seconds: Clock(seconds, iter([0.0, *[0.5] * 9, *[99.0] * 9999]).__next__)
    )
    assert roofline(shape_file, tmp_path / "r.json", "--budget-seconds", "1") == 0
    listed = json.loads((tmp_path / "r.json").read_text())
    assert listed["left_out"] == ["batch 1 x 64 tokens: the time was over"]
    assert [part["name"] for part in listed["cells"][0]["parts"]] == PARTS[:1]
    assert listed["cells"][0]["left_out"][:2] == ["3 nodes: the time was over", "5 nodes: the time was over"]
    assert "left out: batch 1 x 64 tokens: the time was over" in capsys.readouterr().out


def test_an_interruption_leaves_what_was_measured(
    shape_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def interrupted(*arguments: Any) -> list[float]:
        calls.append(arguments)
        if len(calls) == 3:  # warming up, the first cell, the second
            raise KeyboardInterrupt
        return plain_steps(*arguments)

    monkeypatch.setattr(survey, "plain_steps", interrupted)
    with pytest.raises(KeyboardInterrupt):
        roofline(shape_file, tmp_path / "r.json")
    listed = json.loads((tmp_path / "r.json").read_text())
    assert not listed["finished"]
    first, second = listed["cells"]
    assert [part["name"] for part in first["parts"]] == PARTS and first["speedups"]
    assert [part["name"] for part in second["parts"]] == PARTS[:-1] and not second["speedups"]
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]


def test_each_part_is_kept_before_the_next_begins(
    shape_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(cast: Any, prompt: Any, shape: Any, clock: Clock, *rest: Any, **more: Any) -> Any:
        if shape.num_nodes == 5 and not clock.over:  # warming up runs on a clock that is
            raise KeyboardInterrupt
        return timed(cast, prompt, shape, clock, *rest, **more)

    monkeypatch.setattr(survey, "timed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        roofline(shape_file, tmp_path / "r.json")
    (cell,) = json.loads((tmp_path / "r.json").read_text())["cells"]
    assert [part["name"] for part in cell["parts"]] == PARTS[:3]


def test_a_fault_ends_one_part_and_is_no_success(
    shape_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(cast: Any, prompt: Any, shape: Any, *rest: Any, **more: Any) -> Any:
        if shape.num_nodes == 5:
            raise RuntimeError("no such kernel\nfor this shape")
        return timed(cast, prompt, shape, *rest, **more)

    monkeypatch.setattr(survey, "timed", broken)
    assert roofline(shape_file, tmp_path / "r.json", "--cells", "2x96") == 1
    (cell,) = json.loads((tmp_path / "r.json").read_text())["cells"]
    assert "5 nodes: FAILED, RuntimeError: no such kernel" in cell["left_out"]
    assert [part["name"] for part in cell["parts"]] == [name for name in PARTS if name != "verify, 5 nodes"]
    assert cell["speedups"] and "no such kernel" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--cells", "8*32k"], "--cells '8*32k': rows x context"),
        (["--cells", "8x0"], "--cells '0': it must be a positive whole number"),
        (["--nodes", "1"], "--nodes '1': a verify of more than one node"),
        (["--acceptance", "1.2"], "--acceptance '1.2': numbers from 0 to 1"),
        (["--model", "lama-3.1-8b"], "Did you mean 'llama-3.1-8b'"),
        (["--figures", "h20"], "Did you mean 'h200'"),
        (["--kernel", "tritom"], "tritom"),
        (["--json", "/nowhere/r.json"], "there is no such folder"),
        (["--cells", "1x9999"], "Nothing was measured. batch 1 x 9999 tokens: 1 node: the model has 512 positions"),
    ],
)
def test_options_that_make_no_sense_are_one_line(
    shape_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    assert roofline(shape_file, tmp_path / "r.json", *more) == 2
    assert message in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(shape_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert roofline(shape_file, tmp_path / "r.json", "--device", "cuda") == 2
    assert "sees no GPU here" in capsys.readouterr().err


def test_the_model_is_made_where_it_runs() -> None:
    """No weight passes through this machine's memory: the device that has none takes them."""
    fields = configuration("llama-3.1-8b", "bfloat16") | {"num_hidden_layers": 1, "vocab_size": 1000}
    model = random_model(fields, torch.device("meta"))
    assert all(p.is_meta and p.dtype == torch.bfloat16 for p in model.parameters())
    assert sum(p.numel() for p in model.parameters()) == shape_of(fields, "one layer of it").parameters
    assert model.config.max_position_embeddings >= 65536 + ROOM and model.generation_config.eos_token_id is None
    windowed = random_model(fields | {"model_type": "mistral", "sliding_window": 4096}, torch.device("meta"))
    assert windowed.config.sliding_window is None


def test_what_holds_itself_is_released(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a generation and its runners do: else the next cell's cache would come on top of the last one's."""
    monkeypatch.undo()

    class Held:
        pass

    held = Held()
    held.itself, gone = held, weakref.ref(held)  # type: ignore[attr-defined]
    del held
    assert gone() is not None
    memory.release(torch.device("cpu"))
    assert gone() is None


def test_a_path_that_holds_no_configuration_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(OptionError, match="no model configuration"):
        configuration(str(tmp_path), "float32")


def test_a_copy_counts_both_ways() -> None:
    assert 1e8 < copy_bandwidth(torch.device("cpu"), 2**22) < 1e13


def test_bench_takes_device_and_dtype_everywhere() -> None:
    """`specplug bench --device cuda --dtype bfloat16` puts the pair and its prompts there; `meta` stands for it here."""
    models = load(ModelOptions(dtype="bfloat16", device="meta"))
    for model in (models.target, models.draft, models.useless):
        assert model is not None
        assert {(p.device.type, p.dtype) for p in model.parameters()} == {("meta", torch.bfloat16)}
    batch = Prompts(models, builtin=True).batch(24, 2, 0, half=0, ragged=True)
    assert batch.input_ids.device.type == batch.attention_mask.device.type == "meta"
