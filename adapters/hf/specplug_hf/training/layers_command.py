"""`specplug train layer-skip`: which sublayers a target can spare when it drafts for itself. Loads nothing heavy until it runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from specplug_hf.commands.options import positive
from specplug_hf.training.options import TARGET_HELP


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`specplug train layer-skip`."""
    parser = subparsers.add_parser(
        "layer-skip",
        help="which sublayers the target can spare when it drafts for itself (SWIFT)",
        description="Nothing is trained: attentions and MLPs are left out of the target's forwards, and it is looked at how often it "
        "would still choose its own greedy tokens, and what time that saves. The result is used as "
        "Speculator(drafter='layer_skip:layers=FILE').",
    )
    parser.add_argument("--target", required=True, metavar="PATH|builtin", help=TARGET_HELP)
    parser.add_argument(
        "--prompts",
        metavar="FOLDER",
        help="*.txt files like what you will generate: one half to search on, the other to measure on (default: the texts that ship)",
    )
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="what was found, as JSON")
    parser.add_argument(
        "--skip", type=_share, default=0.45, metavar="SHARE", help="of all sublayers, to start from (default: 0.45)"
    )
    parser.add_argument("--iterations", type=positive, default=200, metavar="N", help="choices to try (default: 200)")
    parser.add_argument("--seconds", type=positive, metavar="S", help="end the search after so long")
    parser.add_argument("--rows", type=positive, default=8, metavar="N", help="prompts to search on (default: 8)")
    parser.add_argument(
        "--context", type=positive, default=256, metavar="N", help="tokens of each prompt (default: 256)"
    )
    parser.add_argument("--new", type=positive, default=64, metavar="N", help="tokens that follow it (default: 64)")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: cpu)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--threads", type=positive, metavar="N", help="CPU threads (default: torch's own choice)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Search, measure, print; 0."""
    from specplug_hf.commands.models import quietly  # noqa: PLC0415  (loads torch and transformers)
    from specplug_hf.training.layers_job import LayersJob  # noqa: PLC0415

    with quietly():
        return LayersJob(arguments).run()


def _share(text: str) -> float:
    """A number between 0 and 1, for argparse."""
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a share between 0 and 1")
    return share
