"""The Triton kernels, in processes of their own: interpreted on a CPU, and compiled for a GPU without one.

`interpreted/conftest.py` says why they cannot run in this process.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="needs the triton package (specplug[triton])")

HERE = Path(__file__).parent
FILES = sorted(path.name for path in (HERE / "interpreted").glob("test_*.py"))


@pytest.mark.parametrize("file", FILES)
def test_interpreted(file: str) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")} | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", str(HERE / "interpreted" / file)]
    done = subprocess.run(command, env=environment, cwd=HERE.parents[1], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


QUICK = (
    "attend bf16 D128/128 page 16 G4 q2 splits 1",
    "attend bf16 D256/256 page 16 G2 q9 splits 8 cap window sinks",
    "attend fp16 D80/80 page 16 G1 q9 splits 8",
    "merge bf16 D128",
    "verify_sampled valid laws",
    "verify_greedy n129 valid",
    "commit i32 17 moves of 512",
)
"""A variant of each kernel; the others take minutes."""


SPILLED = 96
"""Bytes of registers that a variant may spill; one in float32 with heads of 64 spills 72 with Triton 3.6, none more than 64 with 3.9."""


@pytest.fixture
def _compiled_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def _variants() -> list:
    from specplug_kernels.compile_check import variants

    return [pytest.param(v, id=v.name, marks=() if v.name in QUICK else pytest.mark.slow) for v in variants()]


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="nothing is compiled under the interpreter")
@pytest.mark.usefixtures("_compiled_anew")
@pytest.mark.parametrize("variant", _variants())
def test_compiled_for_sm_90(variant) -> None:
    """Machine code comes out, within the shared memory of a processor, and a handful of registers at most are spilled."""
    from specplug_kernels.compile_check import SHARED_LIMIT, compile_variant

    compiled = compile_variant(variant, 90)
    assert compiled.cubin_bytes > 1000
    assert compiled.shared_bytes <= SHARED_LIMIT[90]
    assert compiled.stack is None or compiled.stack <= SPILLED, compiled


def test_every_kernel_has_a_quick_variant() -> None:
    from specplug_kernels.compile_check import variants

    functions = {v.function: set() for v in variants()}
    for variant in variants():
        functions[variant.function].add(variant.name)
    assert all(names & set(QUICK) for names in functions.values()) and len(functions) == 5
