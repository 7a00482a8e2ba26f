"""SGLang as a subject of the conformance suite: `specplug conformance --adapter sglang`, in a process of its own.

One process has one SGLang configuration, and this one may have an engine's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import engines
import pytest

SKIPPED = {"greedy", "processors"}  # float64, and processors of the user's own


def conformance(report: Path, *arguments: str) -> dict[str, Any]:
    """The command's report; fails if it does."""
    command = [
        sys.executable,
        "-m",
        "specplug.cli",
        "conformance",
        "--adapter",
        "sglang",
        "--quiet",
        "--json",
        str(report),
    ]
    done = subprocess.run(
        [*command, *arguments], env=os.environ | engines.environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(report.read_text())
    return found


def test_a_draft_over_a_window_conforms(tmp_path: Path) -> None:
    few = ["--plugin", "model+streaming", "--check", "greedy-fp32", "joins", "law-exact", "cache", "interruption"]
    report = conformance(tmp_path / "report.json", "--effort", "quick", *few)
    assert [r["status"] for r in report["results"]] == ["passed"] * 5


def test_drafters_of_every_kind_conform(tmp_path: Path) -> None:
    """From texts, from the target's own pass, from its hidden states, and several at once."""
    names = ["suffix", "retrieval_corpus", "lookahead", "mlp_speculator", "merged"]
    few = ["--plugin", *names, "--check", "greedy-fp32", "joins", "law-exact", "cache"]
    report = conformance(tmp_path / "report.json", "--effort", "quick", *few)
    passed = {(r["case"], r["check"]) for r in report["results"] if r["status"] == "passed"}
    assert passed == {(name, check) for name in names for check in few[few.index("--check") + 1 :]}


@pytest.mark.slow
def test_everything_built_in_conforms(tmp_path: Path) -> None:
    report = conformance(tmp_path / "report.json")
    assert {r["check"] for r in report["results"] if r["status"] == "skipped"} == SKIPPED
    passed = {(r["case"], r["check"]) for r in report["results"] if r["status"] == "passed"}
    cases = {case for case, _ in passed}
    assert cases >= {
        "sglang",
        "none",
        "self",
        "model",
        "prompt_lookup",
        "streaming",
        "full",
        "chain",
        "sequoia",
        "auto",
        "suffix",
        "lookahead",
        "mlp_speculator",
        "merged",
    }
    assert passed >= {
        (case, check) for case in cases for check in ("greedy-fp32", "batch", "joins", "law-exact", "cache")
    }
