"""`specplug policies` on the built-in pair: small, but whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from specplug.cli import main
from specplug.errors import OptionError, UnknownNameError
from specplug_hf.reading.needle import CUE, LENGTH, haystack
from specplug_hf.reading.report import tables
from specplug_hf.reading.survey import Found, Share

SMALL = [
    "--context",
    "160",
    "--prompts",
    "1",
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
    names = ["--policies", "full,streaming,snapkv", "--budget", "48", "--bin-tokens", "20"]
    assert main(["policies", *names, *SMALL, "--json", str(out), "--plot", str(picture)]) == 0
    return json.loads(out.read_text()), picture


def test_every_policy_is_measured_on_every_question(measured: tuple[dict[str, Any], Path]) -> None:
    found, picture = measured
    for part, places in (("context", {"160"}), ("generated", {"0", "20"}), ("needle", {"160"})):
        assert set(found[part]) == {"full", "streaming", "snapkv"}
        for shares in found[part].values():
            assert set(shares) == places
            assert all(0 <= share["accepted"] <= share["rounds"] for share in shares.values())
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_draft_that_reads_everything_is_always_right(measured: tuple[dict[str, Any], Path]) -> None:
    found, _ = measured
    for part in ("context", "generated"):
        for share in found[part]["full"].values():
            assert share["rounds"] and share["share"] == 1.0
    # a chain of three and the bonus: 39 tokens behind the first take ten rounds
    assert sum(share["rounds"] for share in found["generated"]["full"].values()) == 10


def test_a_policy_that_cannot_be_made_is_left_out_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policies", "--policies", "streaming,snapkv", "--budget", "20", *SMALL]) == 0
    out = capsys.readouterr().out
    assert "snapkv was left out: snapkv: budget=20 must exceed window=32" in out and "streaming" in out


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        (["--policies", "stream"], UnknownNameError, "streaming"),
        (["--context", "16384"], OptionError, "the model takes 16384"),
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


def test_a_haystack_has_the_passage_where_it_was_put() -> None:
    text, passage = torch.arange(1000, 1200)[None], torch.arange(LENGTH)
    for depth in (0.0, 0.5, 1.0):
        hay = haystack(text, depth, passage)
        ids = hay.ids[0].tolist()
        assert len(ids) == 200 and ids[-CUE:] == list(range(CUE)) and hay.answer.tolist() == list(range(CUE, LENGTH))
        place = ids.index(0)
        assert ids[place : place + LENGTH] == passage.tolist() and place == int(depth * (200 - LENGTH - CUE))


def test_an_empty_cell_is_no_number() -> None:
    found = Found()
    found.context["full"][512].add(True)
    found.context["lambda"][1024] = Share()
    text = tables(found, 128)
    assert "1.00 (1)" in text and "nan" not in text
