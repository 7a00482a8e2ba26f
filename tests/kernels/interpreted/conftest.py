"""Tests of the Triton kernels: on a GPU as they are, elsewhere under Triton's interpreter.

`TRITON_INTERPRET` counts when triton is first imported and holds for the whole process, so it cannot be set beside tests
that want triton, or torch.compile, as they are. Without it and without a GPU nothing here is collected: `../test_triton.py`
runs these files in processes of their own. To run one by hand: `TRITON_INTERPRET=1 python -m pytest tests/kernels/interpreted`.
On a GPU they bear the mark `gpu`.

Under the interpreter bfloat16 `tl.dot` multiplies bit patterns; the kernels widen to float32 there, so bfloat16 is tested for
its loads, stores and sums only, and float16 stands for the arithmetic of half precision.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

if not INTERPRETED and not torch.cuda.is_available():
    collect_ignore_glob = ["test_*.py"]


@pytest.hookimpl(tryfirst=True)  # before marks are chosen among
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if not INTERPRETED and Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cpu" if INTERPRETED else "cuda")


@pytest.fixture(autouse=True)
def _poisoned_memory() -> Iterator[None]:
    """`torch.empty` gives NaN and the largest integers: a result or a workspace that is not written shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
