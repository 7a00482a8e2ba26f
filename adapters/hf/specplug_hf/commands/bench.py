"""`specplug bench`: specplug beside transformers' own decoding, in one process, taking turns, every output compared."""

from __future__ import annotations

import argparse
from pathlib import Path

from specplug import OptionError
from specplug_hf.commands.names import SETUPS, setup_names
from specplug_hf.commands.options import add_model_options, integers, positive


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`specplug bench`: measure specplug beside transformers' own decoding."""
    parser = subparsers.add_parser(
        "bench",
        help="measure specplug beside transformers' own decoding, and check that the output is the same",
        description="Decoding speed of transformers' own ways and of specplug's set-ups, interleaved in one process. "
        "Prefill is timed apart. Set-ups with options are chosen on one half of the prompts and measured on the other. "
        "Exit status 1 if any output differs from plain generate by more than rounding explains.",
    )
    add_model_options(parser)
    parser.add_argument("--batch", type=integers, metavar="N,N", help="batch sizes (default: 1; with --planner all)")
    parser.add_argument(
        "--context", type=integers, metavar="N,N", help="prompt lengths (default: 256; with --planner all)"
    )
    parser.add_argument("--ragged", action="store_true", help="rows of different lengths, padded on the left")
    parser.add_argument("--new-tokens", type=positive, metavar="N", help="new tokens a row (default: 128)")
    parser.add_argument("--prompts", type=positive, metavar="N", help="batches to measure on (default: 4)")
    parser.add_argument(
        "--repeats", "--runs", dest="repeats", type=positive, metavar="N",
        help="turns on every batch (default: 1; 3 with --all-drafters)",
    )  # fmt: skip
    parser.add_argument(
        "--setups", type=setup_names, metavar="NAME,NAME", help=f"who takes part (default: all): {', '.join(SETUPS)}"
    )
    parser.add_argument(
        "--all-drafters",
        action="store_true",
        help="every drafter on repeating code, other code and prose, at batch 1: which method for which text",
    )
    parser.add_argument("--plot", metavar="FILE.png", type=Path, help="draw what --all-drafters found")
    parser.add_argument("--goals", action="store_true", help="run the project's own cases, goal beside measured")
    parser.add_argument(
        "--planner", action="store_true", help="auto against the best fixed set-up, over a grid of batch and context"
    )
    parser.add_argument(
        "--max-context",
        type=positive,
        metavar="N",
        help="cut the contexts of --goals to this length; leave out --planner's longer ones",
    )
    parser.add_argument("--overhead", action="store_true", help="measure a round's own cost as well")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command; 0, or 1 if an output differs."""
    from specplug_hf.commands.benchmark import Benchmark  # noqa: PLC0415  (loads torch and transformers)
    from specplug_hf.commands.models import quietly  # noqa: PLC0415

    if arguments.plot and not arguments.all_drafters:
        raise OptionError("--plot draws what --all-drafters found: give that too.")
    with quietly():
        if arguments.all_drafters:
            from specplug_hf.commands.comparison import Comparison  # noqa: PLC0415

            return Comparison(arguments).run()
        return Benchmark(arguments).run()
