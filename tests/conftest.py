"""Settings that every test wants: no network, few threads, the same numbers every time."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import hypothesis
import pytest
import torch

hypothesis.settings.register_profile("specplug", deadline=None)  # a test says nothing about a machine's speed
hypothesis.settings.load_profile("specplug")

pytest_plugins = ["specplug_conformance.pytest_plugin"]

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Every test starts from the same global seed, whichever ran before it."""
    torch.manual_seed(0)
