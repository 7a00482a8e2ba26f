"""`specplug train mlp-speculator`: heads for a target, in two stages. Loads nothing heavy until it runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from specplug_hf.commands.options import integers, positive
from specplug_hf.training.options import add_training_options, learning_rate, temperature


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`specplug train mlp-speculator`."""
    parser = subparsers.add_parser(
        "mlp-speculator",
        help="small heads on the target's last hidden state (IBM's architecture and format)",
        description="Stage 1: the heads learn to say the next tokens of your text from the frozen target's hidden states. Stage 2: "
        "those of texts that the target itself writes, in turn greedy and drawn, from prompts of yours. The result is used as "
        "Speculator(drafter='mlp_speculator:path=DIR').",
    )
    add_training_options(parser)
    parser.add_argument("--heads", type=positive, default=3, metavar="N", help="tokens ahead (default: 3)")
    parser.add_argument(
        "--inner-dim", type=positive, metavar="N", help="size of a head's state (default: the target's)"
    )
    parser.add_argument("--tie-weights", action="store_true", help="the heads share their weights: a small checkpoint")
    parser.add_argument(
        "--top-k", type=integers, metavar="N,N,N", help="the tree's width by level (default: 5,4,3,2,2,...)"
    )
    parser.add_argument(
        "--start", type=Path, metavar="DIR", help="go on from these heads, whose sizes hold; stage 1 is left out"
    )
    for name, default, what in (
        ("--steps", 1000, "of stage 1"),
        ("--stage2-steps", 1000, "of stage 2"),
        ("--batch", 8, "windows or texts a step"),
        ("--length", 512, "tokens of a window in stage 1"),
        ("--texts", 1536, "texts that the target writes for stage 2"),
        ("--prompt", 64, "tokens of the prompt of such a text"),
        ("--new", 256, "tokens that the target adds to it"),
    ):
        parser.add_argument(name, type=positive, default=default, metavar="N", help=f"{what} (default: {default})")
    parser.add_argument(
        "--temperature",
        type=temperature,
        default=1.0,
        metavar="T",
        help="of the half of those texts that are drawn; 0: all are greedy (default: 1)",
    )
    parser.add_argument("--lr", type=learning_rate, default=1e-3, metavar="R", help="of stage 1 (default: 0.001)")
    parser.add_argument("--stage2-lr", type=learning_rate, metavar="R", help="of stage 2 (default: half of --lr)")
    parser.add_argument(
        "--soft-labels",
        action="store_true",
        help="learn the target's whole law at every place, not the token there: more is learnt from less text",
    )
    parser.add_argument(
        "--weights",
        choices=("float16", "bfloat16", "float32"),
        default="float16",
        help="dtype that is written (float16)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was measured as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Train, measure, print; 0."""
    from specplug_hf.commands.models import quietly  # noqa: PLC0415  (loads torch and transformers)
    from specplug_hf.training.mlp_speculator_job import HeadsJob  # noqa: PLC0415

    with quietly():
        return HeadsJob(arguments).run()
