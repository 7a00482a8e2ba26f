"""specplug's plugin: commands and the conformance subject. Imports no SGLang."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Iterable
from typing import Any

from specplug.hookspecs import Register, hookimpl


@hookimpl
def specplug_register_commands(register: Register) -> None:
    from specplug_sglang.commands import bench  # noqa: PLC0415  (not at `import specplug`)

    register("bench-sglang", bench.add_parser)


@hookimpl
def specplug_conformance_cases() -> Iterable[Any]:
    from specplug_conformance import Case  # noqa: PLC0415

    try:
        importlib.metadata.version("sglang")
    except importlib.metadata.PackageNotFoundError:
        return []
    return [Case("sglang", "adapter", _subject)]


def _subject() -> Any:
    """Made when it is used: it imports SGLang."""
    return importlib.import_module("specplug_sglang.conformance.subject").SGLangSubject()
