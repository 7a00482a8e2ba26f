"""Tiny random models for the tests of `generate`: built once a session, read only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from families import Outcome, table
from generate_tools import Models, make_models, tiny_tokenizer

import specplug
from specplug_hf import patch


@pytest.fixture(scope="session")
def fp64() -> Models:
    """Target, disturbed draft and unrelated draft in float64: sums in another order cannot swap an argmax."""
    return make_models("float64")


@pytest.fixture(scope="session")
def fp32() -> Models:
    """The same models in float32."""
    return make_models("float32")


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """A byte-level tokenizer with the tiny vocabulary."""
    return tiny_tokenizer()


@pytest.fixture(autouse=True)
def _as_found(fp64: Models) -> Iterator[None]:
    """A test must leave the shared model as it found it, attached to nothing."""
    config, generation = fp64.target.config.to_dict(), fp64.target.generation_config.to_dict()
    implementation = fp64.target.config._attn_implementation
    yield
    assert fp64.target.config._attn_implementation == implementation
    assert fp64.target.config.to_dict() == config
    assert fp64.target.generation_config.to_dict() == generation
    assert not patch._attached
    assert specplug is not None


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """What test_families.py found: served, refused and why."""
    reports = [report for key in ("passed", "failed") for report in terminalreporter.stats.get(key, [])]
    found = [Outcome(*value) for r in reports for name, value in getattr(r, "user_properties", []) if name == "family"]
    if found:
        terminalreporter.section("model families")
        for line in table(found):
            terminalreporter.write_line(line)
