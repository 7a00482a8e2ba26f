"""The benchmark command runs and writes what it prints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from specplug_kernels import bench


def test_table_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "bench.json"
    shape = [
        "--batch",
        "1",
        "--columns",
        "64",
        "--nodes",
        "2",
        "--heads",
        "4/2/16",
        "--threads",
        str(torch.get_num_threads()),
    ]
    bench.main([*shape, "--repeats", "4", "--seconds", "0.05", "--all", "--json", str(file)])
    header, _, row = capsys.readouterr().out.splitlines()
    assert len(header) == len(row)
    (case,) = json.loads(file.read_text())["cases"]
    assert case["shape"]["columns"] == 64
    assert {"floor", "masked_sdpa", "auto", "packed", "split", "sdpa"} == set(case["microseconds"])


def test_bad_heads_are_refused() -> None:
    with pytest.raises(SystemExit):
        bench.parse(["--heads", "8/2"])
