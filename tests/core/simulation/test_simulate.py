import json

import pytest

from specplug.cli import main
from specplug.commands.simulate_options import lengths, rates_of
from specplug.errors import OptionError, SpecplugError
from specplug.simulation.contestants import contestants
from specplug.simulation.metrics import Interval, Metrics, compare, quantile

LLAMA = ["simulate", "--model", "llama-3.1-8b", "--draft", "llama-3.2-1b", "--device", "h200"]
SMALL = ["--rate", "1,8", "--requests", "12", "--output", "16-48", "--controllers", "plain,fixed:1..2,goodput"]


def test_the_table(capsys):
    assert main([*LLAMA, *SMALL, "--seeds", "3"]) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[0] == "llama-3.1-8b on h200, draft llama-3.2-1b: a simulation"
    assert "not measured" in lines[1]
    assert any(line.split() == ["rate", "batch", "plain", "s", "fixed:1", "fixed:2", "goodput"] for line in lines)
    assert "goodput, beside the better of plain and every fixed length" in lines
    assert sum(line.split()[:1] in (["1"], ["8"]) for line in lines) == 4
    assert " to " in lines[-1] and not printed.err.strip().startswith("Traceback")


def test_json_has_every_run(capsys, tmp_path):
    file = tmp_path / "runs.json"
    assert main([*LLAMA, *SMALL, "--seeds", "2", "--json", str(file)]) == 0
    found = json.loads(file.read_text())
    assert [level["rate"] for level in found["rates"]] == [1.0, 8.0]
    level = found["rates"][0]
    assert set(level["runs"]) == {"plain", "fixed:1", "fixed:2", "goodput"}
    assert all(len(runs) == 2 for runs in level["runs"].values())
    assert level["runs"]["plain"][0]["plain_rounds"] == 1.0
    assert level["comparisons"]["goodput"]["best"] in {"plain", "fixed:1", "fixed:2"}
    assert found["options"]["draft"] == "llama-3.2-1b"


def test_a_picture(tmp_path):
    file = tmp_path / "runs.png"
    assert main([*LLAMA, *SMALL, "--seeds", "1", "--plot", str(file)]) == 0
    assert file.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "draft", [[], ["--draft", "prompt_lookup"], ["--draft-reads", "late", "--draft", "llama-3.2-1b"]]
)
def test_other_ways_to_draft(capsys, draft):
    assert main(["simulate", "--model", "llama-3.1-8b", "--device", "h200", *SMALL, "--seeds", "1", *draft]) == 0
    assert main(["simulate", "--model", "llama-3.1-8b", "--device", "h200", *SMALL, "--seeds", "1", "--tree",
                 "sequoia:size=6,depth=3", *draft]) == 0  # fmt: skip
    assert "a tree of up to 6" in capsys.readouterr().out


def test_a_measured_profile(capsys, tmp_path, profile):
    file = tmp_path / "profile.json"
    file.write_text(profile.as_json())
    assert main(["simulate", "--profile", str(file), *SMALL, "--seeds", "1"]) == 0
    assert "27 measured" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rate", "0"], "--rate '0': write requests a second"),
        (["--rate", "1,nan"], "write requests a second"),
        (["--prompt", "8k-1k"], "a range rises"),
        (["--output", "0"], "--output '0': it must be a positive whole number"),
        (["--output", "1m"], "at most 65536 tokens"),
        (["--acceptance", "1.5"], "it must be a number from 0 to 1"),
        (["--acceptance", "512=.7"], "one budget here"),
        (["--controllers", "fixed:0"], "write fixed:4 or fixed:1..6"),
        (["--controllers", "fixed:3..2"], "write fixed:4 or fixed:1..6"),
        (["--controllers", "plain,plain"], "names 'plain' twice"),
        (["--controllers", "godput"], "Did you mean 'goodput'"),
        (["--controllers", "goodput:margn=1"], "Did you mean 'margin'"),
        (["--tree", "chain:length=0"], "has no draft tokens"),
        (["--launch-us", "-1"], "it must be a number of microseconds"),
        (["--requests", "none"], "--requests 'none': it must be a positive whole number"),
        (["--prompt", "4m"], "does not fit"),
        (["--json", "/no/such/folder/x.json"], "there is no folder /no/such/folder"),
        (["--profile", "x.json"], "not both"),
    ],
)
def test_bad_input_is_one_line(capsys, arguments, message):
    assert main([*LLAMA, "--requests", "2", "--seeds", "1", "--rate", "1", *arguments]) == 2
    printed = capsys.readouterr()
    assert message in printed.err and printed.err.count("\n") == 1 and not printed.out


def test_what_is_missing_is_named(capsys):
    assert main(["simulate", "--device", "h200"]) == 2
    assert "simulate needs --model NAME, or --profile FILE" in capsys.readouterr().err


def test_reading_options():
    assert rates_of("4,.5,4") == [0.5, 4.0]
    assert lengths("--prompt", "4k,1k-8k").ranges == ((4096, 4096), (1024, 8192))
    names = [one.name for one in contestants("plain,standby,fixed:2..3,goodput:margin=1.1,interval=4,batch_table")]
    assert names == ["plain", "standby", "fixed:2", "fixed:3", "goodput:margin=1.1,interval=4", "batch_table"]
    with pytest.raises(SpecplugError):
        contestants("")
    with pytest.raises(OptionError):
        contestants("fixed:a")


def metrics(latency, goodput):
    return Metrics(latency, 0.0, 0.0, 0.0, 0.0, goodput, 0.0, 0, 0.0, 0.0, 0.0)


def test_a_comparison_is_seed_by_seed():
    runs = {
        "plain": [metrics(2.0, 10.0), metrics(4.0, 10.0)],
        "fixed:1": [metrics(1.0, 20.0), metrics(5.0, 8.0)],
        "goodput": [metrics(1.25, 19.0), metrics(4.0, 10.0)],
    }
    found = compare("goodput", runs, "plain", ["plain", "fixed:1"])
    assert found.shortfall == Interval(pytest.approx(0.1), 0.0, pytest.approx(0.2))
    assert found.goodput_shortfall == Interval(pytest.approx(0.025), 0.0, pytest.approx(0.05))
    assert found.speedup.median == pytest.approx(1.3)
    assert found.best == "fixed:1" and found.best_speedup.median == pytest.approx(1.4)


def test_quantiles():
    assert quantile([1.0], 0.99) == 1.0
    assert quantile([1.0, 2.0, 3.0], 0.5) == 2.0
    assert quantile([0.0, 10.0], 0.99) == pytest.approx(9.9)
