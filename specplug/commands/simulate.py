"""`specplug simulate`: controllers compared at rising load, in simulated time (specplug/simulation)."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from specplug.commands.plan_options import whole
from specplug.commands.plot import need_matplotlib
from specplug.commands.simulate_options import field_of, rates_of, setting_of
from specplug.cost.presets import DEVICES, MODELS
from specplug.errors import OptionError
from specplug.simulation.contestants import Contestant
from specplug.simulation.experiment import Level, Setting, simulate
from specplug.simulation.picture import draw
from specplug.simulation.report import data, lines


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser("simulate", help="compare controllers at rising load, in simulated time")
    parser.add_argument("--model", metavar="NAME|PATH", help=f"a config.json, or one of: {', '.join(MODELS)}")
    parser.add_argument(
        "--draft",
        metavar="NAME|PATH",
        help="the draft model, or prompt_lookup; without it the target drafts for itself",
    )
    parser.add_argument("--device", metavar="NAME|FILE", help=f"a JSON file, or one of: {', '.join(DEVICES)}")
    parser.add_argument("--devices", default="1", metavar="N", help="devices in tensor parallel (1)")
    parser.add_argument(
        "--profile", metavar="FILE", type=Path, help="times measured by `specplug calibrate`; no --model, --device then"
    )
    parser.add_argument("--rate", default="0.5,2,8,16,32", metavar="LIST", help="requests a second (0.5,2,8,16,32)")
    parser.add_argument("--acceptance", default="0.7", metavar="A", help="of a draft token (0.7); by rank: .63,.11,.06")
    parser.add_argument(
        "--prompt", default="128-1k", metavar="LIST", help="tokens: 4k, a range 1k-8k, or a mix of them (128-1k)"
    )
    parser.add_argument("--output", default="64-512", metavar="LIST", help="tokens, written likewise (64-512)")
    parser.add_argument(
        "--controllers",
        default="plain,fixed:1..6,goodput",
        metavar="LIST",
        help="plain, fixed:N, fixed:N..M, and any controller by name (plain,fixed:1..6,goodput)",
    )
    parser.add_argument(
        "--tree", default="", metavar="TREE", help="what controllers choose from (the longest fixed chain)"
    )
    parser.add_argument(
        "--budget", default="", metavar="N", help="KV entries that the draft reads, or full (512 for self)"
    )
    parser.add_argument(
        "--draft-reads",
        choices=["prompts", "late"],
        default="prompts",
        help="when a draft model reads a prompt: with the target, or when it is first asked to draft (prompts)",
    )
    parser.add_argument("--max-batch", default="128", metavar="N", help="most rows in a batch (128, or what fits)")
    parser.add_argument(
        "--launch-us", metavar="US", help="overhead of a layer and forward (as fitted: docs/planner.md)"
    )
    parser.add_argument("--token-us", metavar="US", help="overhead of a layer and token (as fitted)")
    parser.add_argument("--requests", default="150", metavar="N", help="requests of a run (150)")
    parser.add_argument("--seeds", default="3", metavar="N", help="runs with other requests and machines (3)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write every run as JSON too")
    parser.add_argument("--plot", metavar="FILE.png", type=Path, help="draw latency over the rate")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Simulate and print; 0."""
    rates, field = rates_of(arguments.rate), field_of(arguments.controllers)
    requests, seeds = whole("--requests", arguments.requests), whole("--seeds", arguments.seeds)
    setting, heading = setting_of(arguments, field)
    if arguments.plot:
        need_matplotlib()
    _check(arguments.json, arguments.plot)
    levels = simulate(setting, field, rates, requests, seeds, progress(sys.stderr.isatty()))
    print("\n".join([*heading, f"{requests} requests at each rate, {seeds} seeds", "", *lines(levels, field)]))
    if arguments.plot:
        draw(arguments.plot, heading[0], levels, field)
    if arguments.json:
        _write(arguments.json, _data(arguments, heading, setting, levels, field))
    return 0


def progress(live: bool) -> Any:
    """A counter on stderr; silent where nobody looks."""

    def show(done: int, total: int, what: str) -> None:
        if live:
            print(f"\r{done}/{total} {what:<40}" if what else f"\r{'':<60}\r", end="", file=sys.stderr, flush=True)

    return show


def _check(*paths: Path | None) -> None:
    """Before minutes of work: whether what it gives can be written."""
    for path in paths:
        if path is not None and not path.absolute().parent.is_dir():
            raise OptionError(f"Cannot write {path}: there is no folder {path.absolute().parent}.")


def _data(
    arguments: argparse.Namespace,
    heading: Sequence[str],
    setting: Setting,
    levels: Sequence[Level],
    field: Sequence[Contestant],
) -> dict[str, Any]:
    given = {name: value for name, value in vars(arguments).items() if name not in ("run", "json", "plot")}
    return {
        "options": {name: str(value) if isinstance(value, Path) else value for name, value in given.items()},
        "heading": list(heading),
        "drafter": setting.drafter,
        "max_batch": setting.max_batch,
        "rates": data(levels, field),
    }


def _write(path: Path, found: dict[str, Any]) -> None:
    try:
        path.write_text(json.dumps(found, indent=1) + "\n")
    except OSError as error:
        raise OptionError(f"Cannot write {path}: {error}") from error
