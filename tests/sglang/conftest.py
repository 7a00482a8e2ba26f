"""Tests against the real SGLang on a CPU. They run where SGLang is installed (requirements.txt says how) and skip elsewhere.

This folder is on the path and is called like SGLang's package. It must not become a package itself (`__init__.py`):
then Python would import it in SGLang's place.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

REASON = "SGLang is not installed here; `make test` runs these in an environment of their own"
FOLDER = Path(__file__).parent
DEMO = FOLDER.parents[1] / "adapters" / "hf" / "specplug_hf" / "demo"


def _installed() -> bool:
    """Asked of the installed packages: an import would find this very folder, as a namespace package."""
    try:
        importlib.metadata.version("sglang")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


INSTALLED = _installed()

if INSTALLED:  # before anything imports SGLang, which reads the environment while it is imported
    from engines import STANDINS, environment

    os.environ.update(environment())
    sys.path.insert(0, str(STANDINS))


class _Absent(pytest.Module):
    """A test module that is not even imported."""

    def collect(self) -> Iterator[pytest.Item | pytest.Collector]:
        raise pytest.skip.Exception(REASON, allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    """Skip this folder's modules, each with the same line in the summary, where there is no SGLang."""
    return None if INSTALLED else _Absent.from_parent(parent, path=module_path)


class Pair(NamedTuple):
    """Folders with the weights and tokenizer of the built-in target and draft."""

    target: Path
    draft: Path


@pytest.fixture(scope="session")
def pair() -> Pair:
    """The built-in pair, out of the checkout: specplug need not be installed beside SGLang."""
    found = Pair(DEMO / "target", DEMO / "draft")
    assert all((folder / "model.safetensors").is_file() for folder in found), f"no weights in {DEMO}"
    return found


def _cases() -> list[Any]:
    if not INSTALLED:
        return []
    import setups

    return [*setups.SMOKE, *(pytest.param(case, marks=pytest.mark.slow) for case in setups.REST)]


def _case_id(case: tuple[str, bool]) -> str:
    return f"{case[0]}-{'sync' if case[1] else 'overlap'}"


@pytest.fixture(scope="session", params=_cases(), ids=_case_id)
def engine(request: pytest.FixtureRequest, pair: Pair) -> Iterator[tuple[str, Any]]:
    """A set-up's name and its engine, with or without the overlap scheduler; shared by all tests that take it."""
    import engines
    import setups

    name, alone = request.param
    with engines.engine(pair.target, **setups.options(pair, name, disable_overlap_schedule=alone)) as running:
        yield name, running
