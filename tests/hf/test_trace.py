"""`specplug trace`: what it writes, against the models themselves; and what it refuses before anything is loaded."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from generate_tools import Models, prompt, speculator
from transformers import StoppingCriteriaList

from specplug import Speculator, trace
from specplug.cli import main
from specplug_hf.commands import tracing
from specplug_hf.demo import load_pair

PROMPT = 'def parse(text):\n    """Read the'
FIXED = ["--drafter", "model", "--tree", "sequoia:size=8,depth=4", "--controller", "fixed", "--max-new-tokens", "24"]


@pytest.fixture(scope="module")
def pair() -> Any:
    return load_pair()


def traced(folder: Path, *more: str, text: str = PROMPT) -> tuple[dict[str, Any], str]:
    html, data = folder / "trace.html", folder / "trace.json"
    assert main(["trace", text, "--html", str(html), "--json", str(data), *more]) == 0
    return json.loads(data.read_text()), html.read_text(encoding="utf-8")


def tokens_of(data: dict[str, Any]) -> list[int]:
    return [token["token"] for token in data["generations"][0]["rows"][0]["tokens"]]


def test_the_page_and_its_data(tmp_path: Path, capsys: pytest.CaptureFixture[str], pair: Any) -> None:
    data, html = traced(tmp_path, *FIXED)
    target, _, tokenizer = pair
    ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    expected = target.generate(ids, max_new_tokens=24)[0, ids.shape[1] :].tolist()
    assert tokens_of(data) == expected
    (row,) = data["generations"][0]["rows"]
    assert row["prompt"] == PROMPT and row["tokens"][0]["round"] is None
    assert row["prompt"] + "".join(t["text"] for t in row["tokens"]) == tokenizer.decode([*ids[0].tolist(), *expected])
    totals = data["totals"]
    assert totals["tokens"] == 24 == totals["accepted"] + totals["bonus"] + totals["plain"]
    assert totals["accepted"] > 6 and data["about"]["Decoding"] == "greedy"
    assert data["about"]["Tree"] == "sequoia:size=8,depth=4"
    assert json.dumps(data, separators=(",", ":")).replace("<", "\\u003c") in html
    printed = capsys.readouterr().out
    assert f"24 tokens in {totals['rounds']} rounds: {totals['accepted']} accepted" in printed
    assert str(tmp_path / "trace.html") in printed and str(tmp_path / "trace.json") in printed


def nodes_and_laws(data: dict[str, Any], model: Any, prompt_ids: list[int], temperature: float = 1.0) -> Any:
    """Of every node but roots: what was recorded, and what `model` says of its token behind its ancestors."""
    committed, rounds = [*prompt_ids, tokens_of(data)[0]], data["generations"][0]["rounds"]
    for finished in rounds:
        mine = finished["rows"]["0"]
        paths: list[list[int]] = []
        for node in mine["nodes"]:
            before = paths[node["parent"]] if node["parent"] >= 0 else committed[:-1]
            paths.append([*before, node["token"]])
            if node["parent"] >= 0:
                with torch.no_grad():
                    logits = model(torch.tensor([before])).logits[0, -1]
                yield node, float((logits / temperature).softmax(-1)[node["token"]])
        committed += mine["tokens"]


@pytest.mark.parametrize("more", [[], ["--sample", "--temperature", "0.8", "--seed", "3"]])
def test_probabilities_are_those_of_the_models(tmp_path: Path, pair: Any, more: list[str]) -> None:
    data, _ = traced(tmp_path, *FIXED, "--max-new-tokens", "10", *more)
    target, draft, tokenizer = pair
    ids, temperature = tokenizer(PROMPT)["input_ids"], 0.8 if more else 1.0
    for name, model in (("target", target), ("draft", draft)):
        found = list(nodes_and_laws(data, model, ids, temperature))
        assert len(found) >= 8
        for node, expected in found:
            assert node[name] == pytest.approx(expected, abs=1e-4)


def test_samples_go_by_their_seed(tmp_path: Path) -> None:
    texts = [
        tokens_of(traced(tmp_path, *FIXED, "--sample", *more)[0])
        for more in ([], ["--seed", "0"], ["--seed", "1"], ["--temperature", "0.3"])
    ]
    assert texts[0] == texts[1] and len({tuple(text) for text in texts}) == 3


@pytest.mark.parametrize(
    "more",
    [
        [],  # everything auto, with the built-in draft
        ["--drafter", "prompt_lookup:ngram=2", "--tree", "chain:length=4", "--controller", "fixed"],
        ["--drafter", "self", "--kv-policy", "streaming:sink=2,window=6", "--controller", "fixed"],
        ["--drafter", "model", "--tree", "dynamic:size=8,depth=4", "--controller", "fixed"],
        ["--drafter", "none"],
        ["--controller", "slo:ms=20"],
    ],
    ids=["auto", "lookup", "self", "grown", "none", "slo"],
)
def test_set_ups(tmp_path: Path, more: list[str]) -> None:
    data, _ = traced(tmp_path, "--max-new-tokens", "16", *more, text=PROMPT * 3)
    (generation,) = data["generations"]
    assert len(tokens_of(data)) == 16
    rounds = generation["rounds"]
    has_draft = any(r["has_draft"] for r in rounds)
    told = [n["draft"] for r in rounds for n in r["rows"]["0"]["nodes"][1:]]
    if "prompt_lookup:ngram=2" in more or "none" in more:
        assert not has_draft and set(told) <= {None}
    if "--kv-policy" in more or "dynamic:size=8,depth=4" in more:
        assert has_draft and told and all(0 < p <= 1 for p in told)
    assert all(bool(r["reason"]) == ("fixed" not in more) for r in rounds)


def test_one_of_the_files_is_enough(tmp_path: Path) -> None:
    for option in ("--html", "--json"):
        file = tmp_path / option.strip("-")
        assert main(["trace", PROMPT, option, str(file), *FIXED, "--max-new-tokens", "4"]) == 0
        assert file.stat().st_size > 1000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["html", "json"]


def test_the_prompt_may_come_from_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("x = (\n  1,\n"))
    data, _ = traced(tmp_path, *FIXED, text="-")
    assert data["generations"][0]["rows"][0]["prompt"] == "x = (\n  1,\n"


def test_a_model_of_ones_own_ends_where_it_ends(tmp_path: Path, pair: Any) -> None:
    """Its own end token and none of its other settings, no draft unless one is given."""
    target, _, tokenizer = pair
    ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    expected = target.generate(ids, max_new_tokens=12)[0, ids.shape[1] :].tolist()
    end = expected[6]
    target.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    settings = {"eos_token_id": end, "pad_token_id": 0, "do_sample": True, "suppress_tokens": expected[:1]}
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps(settings))
    data, _ = traced(tmp_path, "--model", str(tmp_path / "model"), "--max-new-tokens", "12")
    assert tokens_of(data) == expected[: expected.index(end) + 1]
    assert data["about"]["Draft"] == "none" and data["about"]["Model"] == str(tmp_path / "model")


def test_rows_of_a_batch_are_kept_apart(fp32: Models, tmp_path: Path) -> None:
    """Any call of `generate` can be recorded: left padding, several rows, several calls."""
    call = prompt(3, "left")
    with trace.recording() as recording:
        for drafter in ("model", "prompt_lookup"):
            out = fp32.target.generate(**call, assistant=speculator(drafter, fp32), max_new_tokens=12, do_sample=False)
    first, second = recording.generations
    for generation in (first, second):
        assert list(generation.rows) == [0, 1, 2]
        for row in range(3):
            assert [t.token for t in generation.tokens(row)] == out[row, 11:].tolist()
            assert list(generation.rows[row].prompt) == call["input_ids"][row, row + 1 :].tolist()


@pytest.mark.parametrize("stop", [13, 14, 16, 18])
def test_what_a_stopping_criterion_takes_back_is_not_shown(fp32: Models, stop: int) -> None:
    """It stops in the midst of what a round gave; neither the text nor the statistics count the rest."""
    spec = speculator("self", fp32, "chain:length=8")
    criteria = StoppingCriteriaList([lambda ids, scores, **_: torch.tensor([ids.shape[1] >= stop])])
    with trace.recording() as recording:
        out = fp32.target.generate(
            **prompt(1), assistant=spec, max_new_tokens=30, do_sample=False, stopping_criteria=criteria
        )
    assert out.shape[1] == stop
    (generation,) = recording.generations
    assert [t.token for t in generation.tokens(0)] == out[0, 11:].tolist()
    assert spec.stats.emitted == stop - 12  # the first token is of no round
    assert generation.rounds[-1].rows[0].cut == 1 + 8 - (stop - 12)


def test_nothing_is_recorded_outside(fp32: Models) -> None:
    with trace.recording() as recording:
        pass
    spec = Speculator(drafter="self", tree="chain:length=2", controller="fixed")
    fp32.target.generate(**prompt(1), assistant=spec, max_new_tokens=4, do_sample=False)
    assert recording.generations == []


# --- what is refused, before anything is loaded


@pytest.fixture
def nothing_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(tracing, "load_as_saved", load)


@pytest.mark.usefixtures("nothing_loads")
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([PROMPT], "give --html FILE"),
        (["", "--html", "{folder}/t.html"], "The prompt is empty"),
        (["-", "--html", "{folder}/t.html"], "Standard input is empty"),
        ([PROMPT, "--html", "{folder}/nowhere/t.html"], "--html {folder}/nowhere/t.html cannot be written: No such file"),
        ([PROMPT, "--html", "{folder}"], "cannot be written: Is a directory"),
        ([PROMPT, "--html", "{folder}/t.html", "--json", "/proc/t.json"], "--json /proc/t.json cannot be written"),
        ([PROMPT, "--html", "{folder}/t", "--json", "{folder}/../{name}/t"], "the same file"),
        ([PROMPT, "--html", "{folder}/t.html", "--tree", "cedar"], "cedar"),
        ([PROMPT, "--html", "{folder}/t.html", "--drafter", "modle"], "modle"),
        ([PROMPT, "--html", "{folder}/t.html", "--controller", "fixed:size=2"], "size"),
        ([PROMPT, "--html", "{folder}/t.html", "--kv-policy", "streaming:windw=2"], "windw"),
        ([PROMPT, "--html", "{folder}/t.html", "--model", "m", "--drafter", "model"], "give --draft PATH"),
        ([PROMPT, "--html", "{folder}/t.html", "--draft", "m", "--drafter", "prompt_lookup"], "does not use it"),
        ([PROMPT, "--html", "{folder}/t.html", "--seed", "3"], "add --sample"),
        ([PROMPT, "--html", "{folder}/t.html", "--temperature", "0.5"], "add --sample"),
        ([PROMPT, "--html", "{folder}/t.html", "--sample", "--temperature", "0"], "must be positive"),
    ],
)  # fmt: skip
def test_refused_in_one_line(
    arguments: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    words = {"folder": tmp_path, "name": tmp_path.name}
    given = [word.replace("{folder}", str(tmp_path)).replace("{name}", tmp_path.name) for word in arguments]
    assert main(["trace", *given]) == 2
    said = capsys.readouterr().err
    assert says.format(**words) in said and said.count("\n") == 1
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_a_file_that_is_there_is_not_touched_by_a_refusal(tmp_path: Path) -> None:
    (tmp_path / "t.html").write_text("old")
    assert main(["trace", PROMPT, "--html", str(tmp_path / "t.html"), "--tree", "cedar"]) == 2
    assert (tmp_path / "t.html").read_text() == "old"


def test_help_loads_no_framework() -> None:
    code = (
        "import sys\nfrom specplug.cli import main\n"
        "try: main(['trace', '--help'])\nexcept SystemExit: pass\n"
        "assert 'transformers' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(option in done.stdout for option in ("PROMPT", "--html", "--kv-policy", "--temperature"))
