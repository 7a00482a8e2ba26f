"""`specplug train draft`: distil a small draft from a target, and see what becomes of its acceptance."""

from __future__ import annotations

import argparse
from pathlib import Path

from specplug_hf.commands.options import positive
from specplug_hf.training.options import add_training_options, learning_rate

DIVERGENCES = ("kl", "reverse-kl", "jsd", "tvd")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`specplug train draft`: distil a small draft from a target."""
    parser = subparsers.add_parser(
        "draft",
        help="distil a small draft from a target",
        description="DistillSpec (arXiv 2310.08461): a draft of the target's vocabulary learns the target's law, on what it writes "
        "itself, on what the target writes, and on the data. Acceptance on held-out prompts is reported before and after. "
        "--out is then a folder for Speculator(drafter='model', draft_model=DIR).",
    )
    add_training_options(parser)
    parser.add_argument(
        "--draft", required=True, metavar="PATH|builtin-draft", help="to start from: a folder, a name, or the draft that ships"
    )  # fmt: skip
    parser.add_argument("--divergence", choices=DIVERGENCES, default="kl", help="to make small (default: kl)")
    parser.add_argument(
        "--beta", type=_share, default=0.5, metavar="SHARE", help="of jsd: the target's share (default: 0.5)"
    )
    parser.add_argument(
        "--on-policy", type=_share, default=0.5, metavar="SHARE", help="of texts that the draft writes (default: 0.5)"
    )
    parser.add_argument(
        "--target-text", type=_share, metavar="SHARE",
        help="of texts that the target writes (default: half of the rest); what is left is data as it is",
    )  # fmt: skip
    parser.add_argument("--steps", type=positive, default=300, metavar="N", help="(default: 300)")
    parser.add_argument("--lr", type=learning_rate, default=3e-4, metavar="RATE", help="(default: 3e-4)")
    parser.add_argument(
        "--length", type=positive, default=256, metavar="N", help="tokens of a text, half of them prompt (default: 256)"
    )
    parser.add_argument("--batch", type=positive, default=16, metavar="N", help="texts a step (default: 16)")
    parser.add_argument(
        "--prompts", type=positive, default=24, metavar="N", help="held-out prompts to measure on (default: 24)"
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write options and figures as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Train, measure, print; 0."""
    from specplug_hf.commands.models import quietly  # noqa: PLC0415  (loads torch and transformers)
    from specplug_hf.training.draft_job import DraftJob  # noqa: PLC0415

    with quietly():
        return DraftJob(arguments).run()


def _share(text: str) -> float:
    """A number from 0 to 1, for argparse."""
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a share from 0 to 1")
    return share
