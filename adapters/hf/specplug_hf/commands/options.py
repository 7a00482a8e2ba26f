"""Options that both commands share. Loads nothing heavy."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

BATCHES, CONTEXTS = (1,), (256,)  # that `bench` measures where none are given


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """Which models to run, and where."""

    model: str | None = None
    draft: str | None = None
    dtype: str = "float32"
    device: str = "cpu"

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> ModelOptions:
        """From parsed arguments."""
        return cls(arguments.model, arguments.draft, arguments.dtype, arguments.device)


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """`--model`, `--draft`, `--dtype`, `--device`, `--json`."""
    parser.add_argument("--model", metavar="PATH", help="the target: a folder or a name (default: the built-in pair)")
    parser.add_argument("--draft", metavar="PATH", help="the draft for --model: a folder or a name")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: cpu)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write everything that was measured as JSON")


def integers(text: str) -> list[int]:
    """`1,4,8` as a list of positive integers, for argparse."""
    try:
        values = [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected integers, separated by commas") from None
    if not values or min(values) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected integers of 1 or more")
    return values


def positive(text: str) -> int:
    """One positive integer, for argparse."""
    values = integers(text)
    if len(values) != 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected one integer")
    return values[0]
