"""`specplug trace`: one generation, round by round, as a page to look at."""

from __future__ import annotations

import argparse
from pathlib import Path

from specplug_hf.commands.options import add_model_options, positive


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`specplug trace`: see where every token came from."""
    parser = subparsers.add_parser(
        "trace",
        help="see where every token of a text came from, and what each round did",
        description="Goes on with PROMPT and writes one self-contained page: every token coloured by its origin; on a click its "
        "round's tree, the accepted path, both models' probabilities, the planner's choice, its predicted and its real time.",
    )
    parser.add_argument("prompt", metavar="PROMPT", help="what to go on with; - reads it from standard input")
    parser.add_argument("--html", metavar="FILE", type=Path, help="write the page here (this or --json must be given)")
    add_model_options(parser)
    parser.add_argument("--max-new-tokens", type=positive, default=96, metavar="N", help="new tokens (default: 96)")
    parser.add_argument(
        "--drafter", default="auto", help="as Speculator takes it: prompt_lookup:ngram=3 (default: auto)"
    )
    parser.add_argument(
        "--kv-policy", default="auto", metavar="POLICY", help="streaming:sink=4,window=508 (default: auto)"
    )
    parser.add_argument("--tree", default="auto", help="sequoia:size=8,depth=4 (default: auto)")
    parser.add_argument("--controller", default="auto", help="fixed, goodput, slo:ms=20 (default: auto)")
    parser.add_argument("--sample", action="store_true", help="sample, instead of the most probable token always")
    parser.add_argument("--temperature", type=float, metavar="T", help="of the samples (default: 1)")
    parser.add_argument("--seed", type=int, metavar="N", help="of the samples (default: 0)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command; 0."""
    from specplug_hf.commands.models import quietly  # noqa: PLC0415  (loads torch and transformers)
    from specplug_hf.commands.tracing import Tracing  # noqa: PLC0415

    with quietly():
        return Tracing(arguments).run()
