"""`specplug bench --adapter sglang`: SPECPLUG servers beside the same server plain, taking turns, every output compared."""

from __future__ import annotations

import argparse
from pathlib import Path

SETUPS = {
    "plain": None,
    "none": {"drafter": "none", "controller": "fixed"},
    "lookup": {"drafter": "prompt_lookup", "tree": "chain:length=6", "controller": "fixed"},
    "model": {"drafter": "model", "tree": "chain:length=4", "controller": "fixed"},
    "self": {"drafter": "self", "controller": "fixed"},
    "auto": {"controller": "auto"},
}
DEFAULT_SETUPS = ("plain", "none", "lookup", "model", "auto")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`specplug bench --adapter sglang`."""
    parser = subparsers.add_parser(
        "bench-sglang",
        help="the same as bench --adapter sglang: SPECPLUG servers beside the same server plain",
        description="Throughput and inter-token latency of SGLang servers at several concurrencies: plain, and with SPECPLUG's "
        "set-ups. One server a set-up, all of them up at once; they take turns, prompt set by prompt set. Greedy, and every "
        "output compared with the plain server's. Exit status 1 if any differs.",
    )
    parser.add_argument("--model", type=Path, required=True, help="the target, a folder")
    parser.add_argument(
        "--draft", type=Path, help="the draft, a folder; without it set-ups with a draft model are left out"
    )
    parser.add_argument(
        "--setups", type=setup_names, default=list(DEFAULT_SETUPS), metavar="NAME,NAME", help=", ".join(SETUPS)
    )
    parser.add_argument("--concurrency", type=numbers, default=[1, 4, 8], metavar="N,N", help="(default: 1,4,8)")
    parser.add_argument(
        "--texts",
        type=Path,
        default=Path(argparse.__file__).parent,
        metavar="FOLDER",
        help="where prompts are cut from: its .txt files, else its .py files (default: Python's standard library)",
    )
    parser.add_argument("--context", type=int, default=128, metavar="N", help="tokens of a prompt (default: 128)")
    parser.add_argument("--new-tokens", type=int, default=96, metavar="N", help="(default: 96)")
    parser.add_argument("--requests", type=int, default=16, metavar="N", help="requests a turn (default: 16)")
    parser.add_argument("--turns", type=int, default=5, metavar="N", help="turns of every server (default: 5)")
    parser.add_argument(
        "--server-args", default="", metavar="FLAGS", help="further flags for every server, in one word"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was measured as JSON too")
    parser.set_defaults(run=run)


def setup_names(text: str) -> list[str]:
    """`plain,auto` as a list with `plain` in front, for argparse."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in SETUPS]
    if unknown or not names:
        raise argparse.ArgumentTypeError(f"unknown set-up {', '.join(unknown) or text!r}; known: {', '.join(SETUPS)}")
    return ["plain", *(name for name in names if name != "plain")]


def numbers(text: str) -> list[int]:
    """`1,4` as a list of positive numbers, for argparse."""
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise argparse.ArgumentTypeError(f"expected positive whole numbers like 1,4,8, got {text!r}")
    return found


def run(arguments: argparse.Namespace) -> int:
    """Run the command; 0, or 1 if an output differs."""
    from specplug_sglang.commands.serving_bench import ServingBench  # noqa: PLC0415  (needs the extra)

    return ServingBench(arguments).run()
