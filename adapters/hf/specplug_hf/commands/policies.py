"""`specplug policies`: what each KV policy keeps, measured as the acceptance of the target drafting over its view."""

from __future__ import annotations

import argparse
from pathlib import Path

from specplug_hf.commands.options import add_model_options, integers, positive


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`specplug policies`: acceptance by KV policy."""
    parser = subparsers.add_parser(
        "policies",
        help="compare KV policies at one budget: acceptance over context, over a long generation, of a needle",
        description="The target drafts for itself over each policy's view of its cache, on the same texts. Reported is the share "
        "of draft tokens that the target accepts where all before them was right: by context; by tokens generated behind one "
        "prompt, where a choice made once grows old; and for a needle, a passage of another text out of every window that is to "
        "be written again at the end: of its tokens those count where the target would say something else without it.",
    )
    add_model_options(parser)
    parser.add_argument("--budget", type=positive, default=128, metavar="N", help="KV entries a draft reads (128)")
    parser.add_argument("--context", type=integers, default=[512, 1024, 2048, 4096], metavar="N,N", help="prompts")
    parser.add_argument("--prompts", type=positive, default=12, metavar="N", help="texts of each length (12: all)")
    parser.add_argument("--batch", type=positive, default=12, metavar="N", help="texts that are read together (12)")
    parser.add_argument("--new-tokens", type=positive, default=64, metavar="N", help="generated behind each (64)")
    parser.add_argument(
        "--long-context", type=positive, default=2048, metavar="N", help="of the long generation (2048)"
    )
    parser.add_argument("--long-tokens", type=positive, default=1024, metavar="N", help="its new tokens (1024)")
    parser.add_argument("--bin-tokens", type=positive, default=128, metavar="N", help="of its report (128)")
    parser.add_argument("--policies", default="", metavar="NAME,NAME", help="which (default: all)")
    parser.add_argument("--plot", metavar="FILE.png", type=Path, help="draw it")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    from specplug_hf.commands.models import quietly  # noqa: PLC0415  (loads torch and transformers)
    from specplug_hf.reading.command import compare  # noqa: PLC0415

    with quietly():
        return compare(arguments)
