"""`specplug roofline`: how near rounds come to what the device allows, with a model's shape and random weights."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`specplug roofline`: parts of a round against computed limits."""
    parser = subparsers.add_parser(
        "roofline",
        help="measure rounds of a model's shape with random weights against what the device's figures allow",
        description="Makes a model of the given shape with random weights on the device, puts random contexts into the cache, and "
        "times, cell by cell: a step of transformers' generate as shipped, plain rounds of ours, a step of the target drafting "
        "for itself over a window, verifies. Beside each the limit by the device's figures; then the speed-up that these times "
        "give at assumed acceptances, beside the theoretical one. What does not fit into memory or time is said. Exit status 1 "
        "if anything failed for another reason.",
    )
    parser.add_argument(
        "--model", default="llama-3.1-8b", metavar="NAME|PATH", help="a shape by name, or a config.json"
    )
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--device", default="cuda", help="cuda (default), cuda:1, cpu, ...")
    parser.add_argument(
        "--figures", default="h200", metavar="NAME|FILE", help="device of the limits, as for plan (h200)"
    )
    parser.add_argument(
        "--cells",
        default=None,
        metavar="LIST",
        help="rows x context, the most important first (default: 8x32k,30x32k,...)",
    )
    parser.add_argument("--nodes", default="5,9,17", metavar="LIST", help="nodes a row that are verified (5,9,17)")
    parser.add_argument("--window", default="512", metavar="N", help="KV entries of a row that the draft reads (512)")
    parser.add_argument("--acceptance", default=".7,.8,.9", metavar="LIST", help="assumed, of a draft token (.7,.8,.9)")
    parser.add_argument("--kernel", default="auto", metavar="NAME", help="as in Speculator(kernel=) (auto)")
    parser.add_argument("--budget-seconds", default="300", metavar="S", help="after which nothing more is begun (300)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="everything measured, rewritten after every part")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command; 0, or 1 if a part failed."""
    from specplug_hf.commands.models import quietly  # noqa: PLC0415  (loads torch and transformers)
    from specplug_hf.roofline.grid import CELLS  # noqa: PLC0415
    from specplug_hf.roofline.measurement import Measurement  # noqa: PLC0415

    arguments.cells = arguments.cells or CELLS
    with quietly():
        return Measurement(arguments).run()
