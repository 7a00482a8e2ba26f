"""`specplug calibrate`: how long rounds take here and what is accepted, measured within a stated time, as a profile."""

from __future__ import annotations

import argparse
from pathlib import Path

from specplug_hf.commands.options import add_model_options


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`specplug calibrate`: measure a profile for `Speculator(profile=...)`."""
    parser = subparsers.add_parser(
        "calibrate",
        help="measure times and acceptance of a model here, as a profile for the planner",
        description="Times of real rounds over batch x context x nodes, the corners first, and what is accepted of each "
        "drafter's proposals by rank, within a stated time. What the time or the memory did not allow is said. "
        "`Speculator(profile=FILE)` plans with it from the first round.",
    )
    add_model_options(parser)
    parser.add_argument("--prompts", metavar="FOLDER", help="*.txt files to measure on (default: the texts that ship)")
    parser.add_argument("--batch", default="1,2,4,8", metavar="LIST", help="batch sizes (1,2,4,8)")
    parser.add_argument("--context", default="256,1k,4k", metavar="LIST", help="prompt lengths, 1k = 1024 (256,1k,4k)")
    parser.add_argument(
        "--nodes", default="1,2,3,5,9,17", metavar="LIST", help="nodes a row that the target verifies (1,2,3,5,9,17)"
    )
    parser.add_argument(
        "--kv-policy",
        action="append",
        metavar="POLICY",
        help="what a draft reads, as streaming:sink=4,window=508; may be given several times (default: budgets of 256, 512 "
        "and 1024 for the target itself, which are those that planning chooses among)",
    )
    parser.add_argument("--budget-seconds", default="300", metavar="S", help="time that measuring may take (300)")
    parser.add_argument("--threads", metavar="N", help="CPU threads (default: torch's own choice)")
    parser.add_argument("--out", type=Path, default=Path("profile.json"), metavar="FILE", help="(profile.json)")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command; 0."""
    from specplug_hf.calibration.calibration import Calibration  # noqa: PLC0415  (loads torch and transformers)
    from specplug_hf.commands.models import quietly  # noqa: PLC0415

    with quietly():
        return Calibration(arguments).run()
