import json
import re
import sys
from pathlib import Path

import pytest

from specplug.cli import main
from specplug.commands.plan_options import acceptance, numbers, whole
from specplug.commands.plot import short
from specplug.cost.choice import ranks
from specplug.errors import OptionError

DOCS = Path(__file__).parents[3] / "docs" / "planner.md"
LLAMA = ["plan", "--model", "llama-3.1-8b", "--device", "h200"]


def printed(capsys, *arguments):
    assert main([*LLAMA, *arguments]) == 0
    return capsys.readouterr().out


def test_what_the_documents_show_is_what_is_printed(capsys):
    shown = re.findall(r"```\n\$ specplug (plan .*)\n((?:.*\n)*?)```", DOCS.read_text())
    assert len(shown) >= 3
    for command, output in shown:
        assert main(command.split(" --plot")[0].split()) == 0
        assert capsys.readouterr().out == output, command


def test_the_table_says_what_fits_and_what_to_do(capsys):
    text = printed(capsys, "--batch", "1,8,32", "--context", "512,32k")
    lines = {tuple(line.split()[:2]): line for line in text.splitlines()}
    assert "do not speculate" in lines["1", "512"]
    assert re.search(r"512 +3 +1\.52", lines["8", "32768"])
    assert "sequoia:size=" in lines["8", "32768"]
    assert "145.0" in lines["32", "32768"] and "does not fit in 139.8" in lines["32", "32768"]


def test_json_has_everything(capsys, tmp_path):
    file = tmp_path / "plan.json"
    printed(capsys, "--batch", "8,32", "--context", "32k", "--json", str(file))
    found = json.loads(file.read_text())
    first, second = found["cells"]
    assert first["fits"] and first["chain"]["budget"] == "512"
    assert round(first["chain"]["speedup"], 2) == 1.52
    assert first["best"]["speedup"] >= first["chain"]["speedup"]
    assert (second["fits"], second["chain"], second["best"], second["most_rows"]) == (False, None, None, 30)
    assert [limit["rows"] for limit in found["limits"]] == [8, 32]
    assert found["model"]["layers"] == 32 and found["draft"] is None


def test_a_draft_model(capsys):
    text = printed(capsys, "--draft", "llama-3.2-1b", "--batch", "1", "--context", "4k", "--acceptance", "0.8")
    assert "draft llama-3.2-1b" in text
    assert re.search(r"512 +4 +2\.05", text)


def test_a_model_of_ones_own(capsys, tmp_path):
    from specplug.cost.presets import MODELS

    (tmp_path / "config.json").write_text(json.dumps(MODELS["qwen2.5-0.5b"]))
    assert main(["plan", "--model", str(tmp_path), "--device", "l4", "--devices", "2"]) == 0
    assert "on 2 x l4" in capsys.readouterr().out


def test_acceptance_of_each_budget_decides_between_them(capsys):
    text = printed(capsys, "--batch", "8", "--context", "64k", "--acceptance", "256=.6,2048=.9")
    assert re.search(r"^ +8 +65536 .* 2048 ", text, re.MULTILINE)


def test_launch_overhead_and_reserve(capsys):
    plain = printed(capsys, "--batch", "8", "--context", "32k")
    slower = printed(capsys, "--batch", "8", "--context", "32k", "--launch-us", "100", "--reserve-gib", "60")
    assert plain != slower
    assert re.search(r" 32768 +107.0 +16 ", slower)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "llama-3.1-8"], "Did you mean 'llama-3.1-8b'"),
        (["--device", "h20"], "Did you mean 'h200'"),
        (["--draft", "llama"], "Unknown model"),
        (["--batch", "0"], "--batch '0'"),
        (["--batch", "1,"], "--batch ''"),
        (["--context=-4k"], "--context '-4k'"),
        (["--context", "9" * 30], "--context"),
        (["--devices", "two"], "--devices 'two'"),
        (["--acceptance", "1.5"], "--acceptance '1.5'"),
        (["--acceptance", "nan"], "--acceptance 'nan'"),
        (["--acceptance", ".8,.3"], "must not exceed 1"),
        (["--acceptance", "512=.8", "--budget", "512"], "leave --budget out"),
        (["--acceptance", "512=.8,512=.9"], "twice"),
        (["--budget", "some"], "--budget 'some'"),
        (["--max-gamma", "0"], "--max-gamma '0'"),
        (["--launch-us", "-1"], "--launch-us"),
        (["--launch-us", "x"], "--launch-us"),
        (["--reserve-gib", "nan"], "--reserve-gib"),
        (["--batch", "1", "--context", "1k", "--json", "/no/where/x.json"], "Cannot write"),
        (["--batch", "1", "--context", "1k", "--plot", "/no/where/x.png"], "Cannot write"),
    ],
)
def test_bad_input_is_one_line(capsys, arguments, said):
    if "--plot" in arguments:
        pytest.importorskip("matplotlib")
    assert main([*LLAMA, *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("specplug: ") and said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("missing", ["--model", "--device"])
def test_a_model_and_a_device_are_needed(capsys, missing):
    rest = {"--model": ["--device", "h200"], "--device": ["--model", "llama-3.1-8b"]}[missing]
    assert main(["plan", *rest]) == 2
    assert missing in capsys.readouterr().err


def test_a_plot_is_a_picture(capsys, tmp_path):
    pytest.importorskip("matplotlib")
    file = tmp_path / "plan.png"
    printed(capsys, "--batch", "8", "--context", "4k", "--max-size", "8", "--plot", str(file))
    assert file.read_bytes().startswith(b"\x89PNG")


def test_a_plot_without_matplotlib_names_the_extra(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main([*LLAMA, "--plot", str(tmp_path / "x.png")]) == 2
    captured = capsys.readouterr()
    assert "pip install 'specplug[plot]'" in captured.err and captured.out == ""


def test_magicdec_as_json(capsys, tmp_path):
    file = tmp_path / "magicdec.json"
    assert main(["plan", "--compare", "magicdec", "--json", str(file)]) == 0
    found = json.loads(file.read_text())
    assert len(found["pure"]) == len(found["fitted"]) == 8
    assert all(row["model"] == "llama-2-7b" for row in found["fitted_on"])


@pytest.mark.parametrize(("text", "number"), [("4k", 4096), ("1m", 2**20), (" 7 ", 7), ("32K", 32768)])
def test_numbers(text, number):
    assert whole("--x", text) == number
    assert numbers("--x", f"{text},1") == [number, 1]


@pytest.mark.parametrize("text", ["", "k", "1.5", "٣", "0k", "-1", "1e3"])
def test_no_numbers(text):
    with pytest.raises(OptionError, match="--x"):
        whole("--x", text)


def test_acceptance_in_its_three_forms():
    assert acceptance(".8", None) == {512: ranks(0.8)}
    assert acceptance(".6,.2", "full,1k") == {None: (0.6, 0.2), 1024: (0.6, 0.2)}
    assert acceptance("256=.7,full=.9", None) == {256: ranks(0.7), None: ranks(0.9)}


def test_contexts_as_people_write_them():
    assert [short(n) for n in (256, 1024, 1500, 32768)] == ["256", "1k", "1500", "32k"]
