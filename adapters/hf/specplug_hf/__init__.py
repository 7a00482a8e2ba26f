"""specplug for Hugging Face transformers: `model.generate(..., assistant=specplug)`."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["generate", "install", "uninstall"]


def __getattr__(name: str) -> Any:
    """`generate`, `install`, `uninstall`, loaded on first use: importing this package does not import transformers."""
    if name == "generate":  # no module may have this name: it would take the function's place once imported
        return importlib.import_module("specplug_hf.generation").generate
    if name in ("install", "uninstall"):
        return getattr(importlib.import_module("specplug_hf.patch"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
