"""`specplug demo`: the same prompt plain and with specplug, streaming; then one line for each of several set-ups."""

from __future__ import annotations

import argparse

from specplug_hf.commands.options import add_model_options, positive


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`specplug demo`: see a model write the same text faster."""
    parser = subparsers.add_parser(
        "demo",
        help="see a model write the same text faster",
        description="Writes one text twice, plain and with specplug (accepted draft tokens coloured), then measures "
        "several set-ups. Exit status 1 if any output differs from plain generate.",
    )
    add_model_options(parser)
    parser.add_argument("--max-new-tokens", type=positive, default=160, metavar="N", help="new tokens (default: 160)")
    parser.add_argument("--prompt", metavar="TEXT", help="what to go on with (default: a held-out text that ships)")
    parser.add_argument("--no-stream", action="store_true", help="only the table")
    parser.add_argument("--short", action="store_true", help="leave out the set-up with a long context")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command; 0, or 1 if an output differs."""
    from specplug_hf.commands.demonstration import Demonstration  # noqa: PLC0415  (loads torch and transformers)
    from specplug_hf.commands.models import quietly  # noqa: PLC0415

    with quietly():
        return Demonstration(arguments).run()
