"""Which SGLang this adapter was tested with; outside the range it refuses instead of failing somewhere inside."""

from __future__ import annotations

import importlib.metadata
import re

from specplug import UnsupportedError

FIRST, LAST = "0.5.23", "0.5.23"


def check_version(installed: str | None = None) -> str:
    """The installed SGLang's version. Raises `UnsupportedError` that names both versions if it is out of the range."""
    version = importlib.metadata.version("sglang") if installed is None else installed
    if not release(FIRST) <= release(version) <= release(LAST):
        served = FIRST if FIRST == LAST else f"{FIRST} to {LAST}"
        raise UnsupportedError(
            f"SGLang {version} is installed; this specplug serves SGLang {served}. Install that, or a specplug that was "
            "tested with yours."
        )
    return version


def release(version: str) -> tuple[int, ...]:
    """The numbers at the front of a version: `0.5.23.post1` -> (0, 5, 23)."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match.group().split(".")[:3]) if match else ()
