"""Every built-in plugin in every adapter of this repository passes every check: the quick form of `make conformance`."""

from __future__ import annotations

from collections.abc import Callable


def test_the_built_in_plugins_conform(conformance_job: Callable[[], None]) -> None:
    conformance_job()
