"""What `pytest -p specplug_conformance.pytest_plugin --pyargs specplug_conformance` collects."""

from __future__ import annotations

from collections.abc import Callable


def test_conformance(conformance_job: Callable[[], None]) -> None:
    """One check of one plugin in one adapter."""
    conformance_job()
