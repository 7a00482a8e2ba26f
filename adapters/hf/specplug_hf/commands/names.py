"""Names of what `specplug bench` can measure, known without loading anything."""

from __future__ import annotations

import argparse

SETUPS = (
    "plain",
    "static",
    "assistant",
    "assistant_best",
    "lookup_hf",
    "none",
    "model",
    "self",
    "lookup",
    "best_fixed",
    "auto",
    "auto_first",
    "auto_useless",
)


def setup_names(text: str) -> list[str]:
    """`plain,model` as a list, for argparse."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in SETUPS]
    if unknown or not names:
        raise argparse.ArgumentTypeError(f"unknown set-up {', '.join(unknown) or text!r}; known: {', '.join(SETUPS)}")
    return names
