"""The entry point of the suite: its command and the built-in plugins' cases. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from specplug.hookspecs import Register, hookimpl


@hookimpl
def specplug_register_commands(register: Register) -> None:
    from specplug_conformance.command import add_parser  # noqa: PLC0415

    register("conformance", add_parser)


@hookimpl
def specplug_conformance_cases() -> Iterable[Any]:
    from specplug_conformance.builtin import CASES  # noqa: PLC0415

    return CASES
