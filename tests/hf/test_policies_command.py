"""`specplug policies` on the built-in pair: small, but whole. What it counts is tested in test_reading.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from specplug.cli import main
from specplug.errors import OptionError, UnknownNameError
from specplug_hf.reading.found import Found
from specplug_hf.reading.report import tables
from specplug_hf.reading.share import Share
from specplug_hf.reading.survey import Plan

SMALL = [
    "--prompts",
    "3",
    "--batch",
    "2",
    "--new-tokens",
    "12",
    "--long-context",
    "96",
    "--long-tokens",
    "40",
    "--quiet",
]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("policies")
    out, picture = folder / "found.json", folder / "found.png"
    names = ["--policies", "full,streaming,snapkv once,snapkv", "--budget", "48", "--bin-tokens", "20"]
    options = ["--context", "160,720", *names, *SMALL, "--json", str(out), "--plot", str(picture)]
    assert main(["policies", *options]) == 0
    return json.loads(out.read_text()), picture


def test_every_policy_is_measured_on_every_question(measured: tuple[dict[str, Any], Path]) -> None:
    found, picture = measured
    # a haystack of 160 has no room for a needle
    for part, places in (
        ("context", {"160", "720"}),
        ("generated", {"0", "20"}),
        ("needle", {"720"}),
        ("recalled", {"720"}),
    ):
        assert set(found[part]) == {"full", "streaming", "snapkv once", "snapkv"}
        trials = {at: [found[part][name][at]["trials"] for name in found[part]] for at in places}
        for shares in found[part].values():
            assert set(shares) == places
        assert all(len(set(counts)) == 1 and counts[0] for counts in trials.values())  # all are asked the same
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_trials_are_those_of_all_texts(measured: tuple[dict[str, Any], Path]) -> None:
    found, _ = measured
    for by in found["context"].values():
        # eleven tokens behind the first, in rounds of four of which three are asked for
        assert all(share["trials"] == 27 and list(share["texts"].values()) for share in by.values())
        assert all({counts[0] for counts in share["texts"].values()} == {9} for share in by.values())
        assert all(set(share["texts"]) == {"0", "1", "2"} and len(share["interval"]) == 2 for share in by.values())
    assert found["generated"]["streaming"]["0"]["trials"] == 3 * 15
    for name, bins in found["generated"].items():
        whole = found["whole"][name]["40"]
        assert all(whole[count] == sum(share[count] for share in bins.values()) for count in ("trials", "accepted"))


def test_a_draft_that_reads_everything_is_always_right(measured: tuple[dict[str, Any], Path]) -> None:
    found, _ = measured
    for part in ("context", "generated", "needle", "recalled"):
        assert all(share["trials"] and share["share"] == 1.0 for share in found[part]["full"].values())


def test_differences_are_of_the_shares(measured: tuple[dict[str, Any], Path]) -> None:
    found, _ = measured
    for part, gaps in found["differences"].items():
        assert {"snapkv - streaming", "snapkv once - streaming", "snapkv - snapkv once"} == set(gaps)
        for name, by in gaps.items():
            one, other = (found[part][policy] for policy in name.split(" - "))
            for at, gap in by.items():
                texts = one[at]["texts"]
                mean = sum((texts[t][1] - other[at]["texts"][t][1]) / texts[t][0] for t in texts) / len(texts)
                assert gap["mean"] == pytest.approx(mean, abs=1e-9)


def test_what_is_asked_of_a_needle_is_what_it_does_to_the_target(measured: tuple[dict[str, Any], Path]) -> None:
    found, _ = measured
    target = {name: by["720"] for name, by in found["target"].items()}
    changed, recalled = target["changed by it"]["accepted"], target["right only with it"]["accepted"]
    assert 0 < recalled < changed < target["changed by it"]["trials"]
    assert recalled <= target["right with the needle"]["accepted"]
    assert found["needle"]["streaming"]["720"]["trials"] == changed
    assert found["recalled"]["streaming"]["720"]["trials"] == recalled


def test_a_policy_that_cannot_be_made_is_left_out_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--policies", "streaming,snapkv", "--budget", "20", "--context", "160"]
    assert main(["policies", *options, *SMALL]) == 0
    out = capsys.readouterr().out
    assert "snapkv was left out: snapkv: budget=20 must exceed window=32" in out and "streaming" in out


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        (["--policies", "stream"], UnknownNameError, "streaming"),
        (["--context", "16384"], OptionError, "the model takes 16384"),
        (["--prompts", "13"], OptionError, "there are 12 texts"),
    ],
)
def test_what_cannot_be_measured_is_refused_first(options: list[str], error: type[Exception], words: str) -> None:
    import argparse

    from specplug_hf.commands.policies import add_parser

    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    arguments = parser.parse_args(["policies", *options])
    with pytest.raises(error, match=words):
        arguments.run(arguments)


def test_an_empty_cell_is_no_number() -> None:
    found = Found()
    found.context["full"][512].add(0, True)
    found.context["lambda"][1024] = Share()
    plan = Plan({}, 128, (512, 1024), 1, 1, 1, 1, 128, 1)
    text = tables(found, plan)
    assert "1.00" in text and "nan" not in text and "[" not in text.splitlines()[-2]
