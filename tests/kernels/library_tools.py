"""What tests of all compiled libraries need: faulty builds, missing compilers, and arguments at the end of a page."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from specplug_kernels.native import build as building
from specplug_kernels.native.library import Known

GUARDED = """
import ctypes, mmap, os, torch

libc, kept = ctypes.CDLL(None), []

def at_the_end(numbers):
    # where a page ends, and the next page may be neither read nor written to
    pages = -(-numbers.nbytes // mmap.PAGESIZE)
    room = mmap.mmap(-1, (pages + 8) * mmap.PAGESIZE)
    kept.append(room)
    start = ctypes.addressof(ctypes.c_char.from_buffer(room))
    assert libc.mprotect(ctypes.c_void_p(start + pages * mmap.PAGESIZE), 8 * mmap.PAGESIZE, 0) == 0
    whole = torch.frombuffer(room, dtype=numbers.dtype, count=numbers.numel(), offset=pages * mmap.PAGESIZE - numbers.nbytes)
    return whole.view(numbers.shape).copy_(numbers)
"""
"""`at_the_end(tensor)`: the same numbers, behind which nothing may be touched."""


def skip_without(known: Known[Any], dtype: torch.dtype = torch.float32) -> None:
    """Skip, and say why, where `known` could not be compiled."""
    obstacle = known.why_none(dtype)
    if obstacle is not None:
        pytest.skip(f"the compiled library does not serve {dtype} here: {obstacle}")


def run_guarded(program: str) -> None:
    """Run `program` behind `GUARDED` in a process of its own, which must come to its end."""
    whole = f'{GUARDED}\n{program}\nprint("untouched", flush=True)\nos._exit(0)\n'
    done = subprocess.run([sys.executable, "-c", whole], capture_output=True, text=True, check=False)
    assert done.stdout == "untouched\n", done.stderr


def quick_build(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """An empty cache in `folder`, and a build that does not optimise, which takes a second."""
    monkeypatch.setattr(building, "FLAGS", tuple(flag.replace("-O3", "-O0") for flag in building.FLAGS))
    monkeypatch.setenv("SPECPLUG_CACHE", str(folder / "cache"))


def small_source(monkeypatch: pytest.MonkeyPatch, folder: Path, answer: int = 42) -> None:
    """Build another source than the real ones, in a moment: a function that gives an `answer`."""
    folder.mkdir(exist_ok=True)
    (folder / "tree_attention.c").write_text(f"int answer(void) {{ return {answer}; }}\n")
    monkeypatch.setattr(building, "SOURCES", folder)


def changed_source(monkeypatch: pytest.MonkeyPatch, folder: Path, name: str, old: str, new: str) -> None:
    """Build from sources of which `name` or what all include has `new` in the one place where `old` stood."""
    found = 0
    for source in building.SOURCES.glob("*.[ch]"):
        text = source.read_text()
        if source.name in (name, "lanes.h"):
            found += text.count(old)
            text = text.replace(old, new)
        (folder / source.name).write_text(text)
    assert found == 1
    monkeypatch.setattr(building, "SOURCES", folder)


def nothing_to_build_with(monkeypatch: pytest.MonkeyPatch, folder: Path, known: Known[Any], switch: str) -> str:
    """As in a process that has not looked for `known` yet, where compiling is "off" or there is "no compiler"; what is then said."""
    monkeypatch.setattr(known, "found", None)
    monkeypatch.setenv("SPECPLUG_CACHE", str(folder / "cache"))
    monkeypatch.delenv("CC", raising=False)
    if switch == "off":
        monkeypatch.setenv("SPECPLUG_NATIVE", "0")
        return "SPECPLUG_NATIVE=0 turns it off"
    monkeypatch.setenv("PATH", str(folder))
    return "no C compiler is found"
