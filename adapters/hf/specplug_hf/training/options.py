"""Options that every training command takes. Loads nothing heavy."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from specplug_hf.commands.options import positive

TARGET_HELP = "the model to draft for: a folder, a name, or builtin for the pair that ships"


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """`--target`, `--data`, `--out`, `--seed`, `--device`, `--dtype`, `--threads`, `--resume`."""
    parser.add_argument("--target", required=True, metavar="PATH|builtin", help=TARGET_HELP)
    parser.add_argument(
        "--data",
        required=True,
        nargs="+",
        metavar="FILE",
        help="UTF-8 text files, or builtin for the sources of the standard library; a twentieth is held out",
    )
    parser.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="what was trained, and the state to resume from"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: cpu)")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="of the target (default: float32)",
    )
    parser.add_argument("--threads", type=positive, metavar="N", help="CPU threads (default: torch's own choice)")
    parser.add_argument("--resume", action="store_true", help="go on with the training that was interrupted in --out")


def learning_rate(text: str) -> float:
    """A positive number, for argparse."""
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0 < rate < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a learning rate between 0 and 1")
    return rate


def temperature(text: str) -> float:
    """A number that is not negative, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a temperature, 0 or more")
    return value
