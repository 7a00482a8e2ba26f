"""`specplug demo` and `specplug bench`: small runs of both, and that each notices an output that is not plain's."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import specplug
from specplug import OptionError
from specplug.cli import main
from specplug.plugins import Plugins
from specplug_hf.commands import measure, show
from specplug_hf.commands.batches import Prompts
from specplug_hf.commands.cases import Case, Result, choose
from specplug_hf.commands.dictation import PASSAGE
from specplug_hf.commands.equality import Difference, differences
from specplug_hf.commands.goals import CASES, outcomes, planner_cases
from specplug_hf.commands.measure import Sample, interleaved
from specplug_hf.commands.models import Models, load
from specplug_hf.commands.names import SETUPS
from specplug_hf.commands.options import ModelOptions
from specplug_hf.commands.setups import OURS, REGISTRY, Contender, Option, contenders
from specplug_hf.commands.summary import Spread, better_of, paired
from specplug_hf.commands.table import table

TINY = ["--new-tokens", "6", "--context", "24", "--prompts", "1", "--quiet"]


@pytest.fixture(scope="module")
def models() -> Models:
    return load(ModelOptions())


@pytest.fixture
def wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call of ours gets its third new token wrong."""
    right: Callable[..., Any] = measure.call

    def call(models: Models, option: Option, batch: Any, new_tokens: int, **more: Any) -> Any:
        output = right(models, option, batch, new_tokens, **more)
        if option.speculator is not None:
            output[:, batch.input_ids.shape[1] + 2] += 1
        return output

    monkeypatch.setattr(measure, "call", call)
    monkeypatch.setattr(show, "call", call)


def test_demo_shows_both_texts_and_the_table(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "demo.json"
    assert main(["demo", "--short", "--max-new-tokens", "8", "--json", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "plain generate" in printed
    assert "The two texts are identical." in printed
    assert "\x1b" not in printed, "no colours in a file"
    listed = json.loads(file.read_text())
    assert [s["setup"] for s in listed["setups"]] == ["draft model, token tree", "prompt lookup", "auto"]
    assert all(s["identical"] and s["accepted_length"] >= 1 for s in listed["setups"])


def test_demo_colours_accepted_tokens_and_shows_the_same_text(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert main(["demo", "--short", "--max-new-tokens", "16"]) == 0
    printed = capsys.readouterr().out
    assert show.GREEN in printed
    plain, ours = printed.split("--- plain generate")[1].split("--- specplug")[:2]
    for style in (show.GREEN, show.BOLD, show.DIM, show.RESET):
        plain, ours = plain.replace(style, ""), ours.replace(style, "")
    text = plain.split("\n", 1)[1].split("\n--- 16 tokens")[0]
    assert text == ours.split("\n", 1)[1].split("\n--- 16 tokens")[0]


def test_demo_takes_a_prompt(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--short", "--max-new-tokens", "4", "--prompt", "def main():\n    return"]) == 0
    assert "def main():" in capsys.readouterr().out


@pytest.mark.usefixtures("wrong")
@pytest.mark.parametrize("more", [[], ["--no-stream"]])
def test_demo_fails_when_an_output_differs(more: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "demo.json"
    assert main(["demo", "--short", "--max-new-tokens", "6", "--json", str(file), *more]) == 1
    assert "DIFFERENT" in capsys.readouterr().out
    assert json.loads(file.read_text())["identical"] is False


def test_bench_measures_every_set_up(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    assert main(["bench", *TINY, "--overhead", "--json", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "every output identical" in printed
    listed = json.loads(file.read_text())
    (case,) = listed["cases"]
    expected = [name for name in SETUPS if name != "self"]  # nothing to leave out of 24 tokens
    assert sorted(line["contender"] for line in case["summary"]) == sorted(expected)
    assert all(line["rate"]["median"] > 0 for line in case["summary"])
    assert all(0 < s["prefill_seconds"] < s["seconds"] for s in case["samples"])
    assert case["differences"] == []
    (overhead,) = listed["overhead"]
    assert overhead["contender"] == "model"
    assert overhead["round_ms"]["median"] > 0
    assert overhead["share"]["n"] == 1
    assert listed["environment"]["target_parameters"] > listed["environment"]["draft_parameters"]


def test_bench_runs_ragged_batches_and_leaves_out_what_takes_one_row(tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    setups = "none,assistant,lookup_hf,lookup"
    assert main(["bench", *TINY, "--batch", "3", "--ragged", "--setups", setups, "--json", str(file)]) == 0
    (case,) = json.loads(file.read_text())["cases"]
    assert [line["contender"] for line in case["summary"]] == ["none", "lookup"]


def test_bench_measures_self_speculation(tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    options = ["--context", "1100", "--new-tokens", "6", "--prompts", "1", "--quiet"]
    assert main(["bench", *options, "--setups", "none,self", "--json", str(file)]) == 0
    (case,) = json.loads(file.read_text())["cases"]
    chosen = next(line for line in case["summary"] if line["contender"] == "self")
    assert chosen["option"] in [option.label for option in REGISTRY["self"](None).options]  # type: ignore[arg-type]


@pytest.mark.usefixtures("wrong")
def test_bench_fails_when_an_output_differs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    assert main(["bench", *TINY, "--setups", "plain,none,lookup_hf", "--json", str(file)]) == 1
    printed = capsys.readouterr().out
    assert "DIFFERENT: none" in printed
    found = json.loads(file.read_text())["cases"][0]["differences"]
    assert {d["position"] for d in found} == {2}
    assert all(d["contender"] == "none (none)" and not d["is_rounding"] and d["gap"] > 0 for d in found)


def test_bench_prints_goals_beside_what_was_measured(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "goals.json"
    sizes = ["--max-context", "24", "--new-tokens", "4", "--prompts", "1", "--repeats", "1", "--quiet"]
    assert main(["bench", "--goals", *sizes, "--json", str(file)]) == 0
    goals = json.loads(file.read_text())["goals"]
    assert len(goals) == sum(len(listed) for _, listed in CASES)
    by_name = {(g["case"].split(",")[0], g["goal"]["ours"], g["goal"]["factor"]): g for g in goals}
    assert by_name["batch 1", "model", 2.0]["ratio"]["n"] == 1
    assert by_name["batch 4", "self", 1.3]["ratio"] is None  # 24 tokens are too few for it
    assert "a round's own cost" in capsys.readouterr().out


def test_bench_takes_model_folders(models: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, saved in (("target", models.target), ("draft", models.draft)):
        assert saved is not None
        saved.save_pretrained(tmp_path / name)
        models.tokenizer.save_pretrained(tmp_path / name)
    folders = ["--model", str(tmp_path / "target"), "--draft", str(tmp_path / "draft")]
    assert main(["bench", *TINY, *folders, "--setups", "plain,model"]) == 0
    assert str(tmp_path / "target") in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["bench", "--model", "/nowhere/at/all", *TINY], "No model folder"),
        (["bench", "--context", "999999", "--new-tokens", "4"], "exceed the model's positions"),
        (["demo", "--prompt", "", "--short"], "empty"),
    ],
)
def test_errors_are_one_line(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("bad", [["--setups", "plane"], ["--batch", "0"], ["--context", "a"], ["--new-tokens", "1,2"]])
def test_bad_options_are_refused_by_the_parser(bad: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["bench", *bad])
    assert "argument" in capsys.readouterr().err


def test_help_loads_no_framework() -> None:
    code = (
        "import sys\nfrom specplug.cli import main\n"
        "try: main(['bench', '--help'])\nexcept SystemExit: pass\n"
        "assert 'transformers' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in SETUPS)


def test_names_and_registry_agree() -> None:
    assert tuple(REGISTRY) == SETUPS


def test_readme_drafter_is_short_and_works(models: Models) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    code = readme.split("<!-- drafter -->\n```python\n")[1].split("```")[0]
    assert len([line for line in code.splitlines() if line and not line.startswith("#")]) < 20
    module = types.ModuleType("bigram")
    exec(compile(code, "README.md", "exec"), module.__dict__)
    mine = Plugins(load_entry_points=False)
    mine.register(module, "readme")
    drafter = mine.get("drafters", "bigram").factory()
    spec = specplug.Speculator(drafter=drafter, tree="chain:length=3", controller="fixed")
    batch = Prompts(models, builtin=True).batch(60, 2, 0, 1, ragged=True)
    plain, ours = (measure.call(models, Option("x", keywords), batch, 12) for keywords in ({}, {"assistant": spec}))
    assert torch.equal(plain, ours)
    assert spec.stats.proposed > 0


def test_halves_share_no_text(models: Models) -> None:
    prompts = Prompts(models, builtin=True)
    rows: list[set[tuple[int, ...]]] = [set(), set()]
    for half in (0, 1):
        for number in range(6):
            batch = prompts.batch(20, 4, number, half)
            rows[half] |= {tuple(row) for row in batch.input_ids.tolist()}
    assert not rows[0] & rows[1]


def test_ragged_batches_are_padded_on_the_left(models: Models) -> None:
    batch = Prompts(models, builtin=True).batch(20, 4, 0, 1, ragged=True)
    assert batch.input_ids.shape == (4, 20)
    assert batch.attention_mask.sum(1).tolist() == [20, 12, 17, 8]
    assert batch.attention_mask[:, -1].all()


def test_prompts_in_another_tokenizer_are_long_enough(models: Models) -> None:
    prompts = Prompts(models, builtin=False)
    batch = prompts.batch(9500, 1, 0, 1)  # more than one text
    assert batch.input_ids.shape == (1, 9500)


def test_everybody_takes_turns(models: Models) -> None:
    runs = [(c, c.option) for c in contenders(["plain", "none", "lookup"], models)]
    batches = [Prompts(models, builtin=True).batch(16, 1, number, 1) for number in range(2)]
    order: list[str] = []
    interleaved(models, runs, batches, 3, 2, lambda contender, *_: order.append(contender.name))
    assert [order[i] for i in (0, 3, 6, 9)] == ["plain", "none", "lookup", "plain"]
    assert all(sorted(order[i : i + 3]) == ["lookup", "none", "plain"] for i in (0, 3, 6, 9))


def test_first_forward_of_assisted_decoding_is_not_counted_as_decoded(models: Models) -> None:
    batch = Prompts(models, builtin=True).batch(64, 1, 0, 1)
    (contender,) = contenders(["assistant_best"], models)
    sample, new = measure.timed(models, contender, contender.option, batch, 12, (0, 0))
    assert sample.tokens == new.numel() == 12
    assert 1 <= sample.first_tokens <= 3  # two candidates and the bonus token
    assert models.draft is not None
    assert models.draft.generation_config.num_assistant_tokens is None, "put back"


def test_untrained_draft_differs_and_leaves_the_seed_alone(models: Models) -> None:
    before = torch.random.get_rng_state()
    again = load(ModelOptions())
    assert torch.equal(before, torch.random.get_rng_state())
    for other in (models, again):
        assert other.useless is not None
    ours, theirs = models.useless.get_input_embeddings().weight, again.useless.get_input_embeddings().weight
    assert torch.equal(ours, theirs), "the same random draft every time"
    assert not torch.equal(ours, models.draft.get_input_embeddings().weight)


def test_differences_tell_rounding_from_faults(models: Models) -> None:
    batch = Prompts(models, builtin=True).batch(16, 1, 0, 1)
    expected = measure.call(models, Option("plain"), batch, 5)[:, 16:]
    assert differences(models, "x", batch, expected, expected.clone()) == []
    got = expected.clone()
    got[0, 3] = (got[0, 3] + 7) % 50
    (found,) = differences(models, "x", batch, expected, got)
    assert (found.position, found.expected, found.got) == (3, int(expected[0, 3]), int(got[0, 3]))
    assert found.margin > 0
    assert not found.is_rounding
    (short,) = differences(models, "x", batch, expected, expected[:, :4])
    assert short.position == 4
    assert not short.is_rounding
    tie = Difference("x", "p", 0, 3, 1, 2, margin=1e-6, gap=1e-6, tolerance=1e-5)
    assert tie.is_rounding
    assert str(tie).startswith("rounding")


def _sample(name: str, batch: int, rate: float, option: str = "") -> Sample:
    return Sample(name, option, batch, 0, seconds=2.0, prefill_seconds=1.0, tokens=int(rate) + 1, first_tokens=1)


def test_ratios_are_paired() -> None:
    samples = [_sample("a", 0, 100), _sample("a", 1, 200), _sample("b", 0, 50), _sample("b", 1, 50)]
    assert paired(samples, "a", "b") == Spread(3.0, 2.5, 3.5, 2)
    assert paired(samples, "a", "c") is None
    assert better_of(samples, ["b", "a", "c"]) == "a"
    assert better_of(samples, ["c"]) is None


def test_the_best_option_is_chosen() -> None:
    contender = Contender("a", OURS, [Option("slow"), Option("fast")])
    choose([contender], [_sample("a", 0, 10, "slow"), _sample("a", 0, 30, "fast"), _sample("a", 1, 12, "fast")])
    assert contender.option.label == "fast"


def test_goals_compare_with_the_better_of_several() -> None:
    case, goals = CASES[0]
    rates = {"plain": 100, "none": 120, "assistant": 60, "assistant_best": 150, "lookup_hf": 130}
    rates |= {"model": 210, "lookup": 160, "auto": 200, "auto_first": 119, "auto_useless": 108}
    samples = [_sample(name, 0, rate) for name, rate in rates.items()]
    measured = {(o.goal.ours, o.goal.factor): o for o in outcomes(Result(case, {}, samples), goals)}
    assert measured["model", 1.3].against == "assistant_best"
    assert measured["model", 1.3].reached
    assert measured["auto_useless", 0.95].against == "none"
    assert not measured["auto_useless", 0.95].reached


def test_a_turning_text_is_written_as_dictated_and_is_predictable_for_its_half(models: Models) -> None:
    vocab = models.target.config.vocab_size
    batch = Prompts(models, builtin=True).batch(40, 2, 0, 1).turning(80, vocab, seed=3)
    assert batch.dictated is not None
    half, rest = batch.dictated[:40].tolist(), batch.dictated[40:].tolist()
    assert half[PASSAGE:] == half[:-PASSAGE], "a passage, over and over"
    assert len(set(rest)) > 30, "noise"
    lookup = specplug.Speculator(drafter="prompt_lookup:ngram=2", tree="chain:length=8", controller="fixed")
    for option in (Option("plain"), Option("lookup", {"assistant": lookup})):
        output = measure.call(models, option, batch, 80)
        assert torch.equal(output[:, 40:], batch.dictated.expand(2, -1)), option.label
    assert lookup.stats.accepted_length > 1.4  # eight at a time for a third of the text, then one


@pytest.mark.slow
def test_the_planner_is_measured_on_texts_that_turn(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    small = ["--planner", "--max-context", "256", "--new-tokens", "4", "--prompts", "1", "--quiet"]
    assert main(["bench", *small, "--json", str(file)]) == 0
    listed = json.loads(file.read_text())["cases"]
    assert [(case["rows"], case["context"], case["turning"]) for case in listed] == [
        *((rows, 256, False) for rows in (1, 2, 4, 8)), (1, 256, True), (4, 256, True)
    ]  # fmt: skip
    assert "random from the half on" in capsys.readouterr().out


def test_a_part_of_the_planners_grid() -> None:
    cases = [case for case, _ in planner_cases(8, 1, 2, None, [4], [256, 4096])]
    assert [(case.rows, case.context, case.turning) for case in cases] == [
        (4, 256, False),
        (4, 4096, False),
        (4, 256, True),
    ]
    assert {(case.new_tokens, case.prompts, case.repeats) for case in cases} == {(8, 1, 2)}
    assert len(planner_cases(None, None, None)) == 14
    with pytest.raises(OptionError, match=r"batches of \[1, 2, 4, 8\] and contexts of \[256, 1024, 4096\]"):
        planner_cases(None, None, None, None, [3], None)


def test_cases_below_a_context_leave_self_speculation_out(models: Models) -> None:
    (contender,) = contenders(["self"], models)
    assert not contender.fits(1, 256)
    assert contender.fits(4, 8192)
    assert Case(1, 256, 8, ("self",)).title.startswith("batch 1, prompts of 256")


def test_tables_are_aligned() -> None:
    lines = table(["name", "n"], [["a", "1"], ["longer", "12"]], right=(1,)).splitlines()
    assert lines == ["name     n", "------  --", "a        1", "longer  12"]
