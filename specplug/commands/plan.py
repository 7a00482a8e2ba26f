"""`specplug plan`: what speculation would give on a device, before anything runs: speed-up, budget, tree, memory."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from specplug.commands import compare_magicdec
from specplug.commands.plan_options import acceptance, numbers, whole
from specplug.commands.plot import Curve, draw, need_matplotlib
from specplug.commands.tables import aligned
from specplug.cost.choice import MAX_GAMMA, MAX_SIZE, Budget, Choice
from specplug.cost.device_memory import DeviceMemory
from specplug.cost.planner import Cell, Limit, Planner
from specplug.cost.presets import DEVICES, GIB, MODELS, device, model_shape
from specplug.cost.roofline import Roofline, free_nodes
from specplug.errors import OptionError

LONGEST = 2**20  # tokens: where curves end if memory does not end them


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser("plan", help="predict speed-up, best budget and tree, and what fits, on a device")
    parser.add_argument("--model", metavar="NAME|PATH", help=f"a config.json, or one of: {', '.join(MODELS)}")
    parser.add_argument("--draft", metavar="NAME|PATH", help="the draft model; without it the target drafts for itself")
    parser.add_argument("--device", metavar="NAME|FILE", help=f"a JSON file, or one of: {', '.join(DEVICES)}")
    parser.add_argument("--devices", default="1", metavar="N", help="devices in tensor parallel (1)")
    parser.add_argument("--batch", default="1,8,32", metavar="LIST", help="batch sizes (1,8,32)")
    parser.add_argument("--context", default="4k,32k", metavar="LIST", help="tokens a row, 1k = 1024 (4k,32k)")
    parser.add_argument(
        "--acceptance",
        default="0.8",
        metavar="A",
        help="of a draft token (0.8); by rank: .63,.11,.06; by budget: 256=.78,512=.82",
    )
    parser.add_argument("--budget", metavar="LIST", help="KV entries that the draft reads, or full (512)")
    parser.add_argument(
        "--max-gamma", default=str(MAX_GAMMA), metavar="N", help=f"longest chain and path ({MAX_GAMMA})"
    )
    parser.add_argument("--max-size", default=str(MAX_SIZE), metavar="N", help=f"most tokens of a tree ({MAX_SIZE})")
    parser.add_argument(
        "--launch-us", default="0", metavar="US", help="overhead of a layer and forward, microseconds (0)"
    )
    parser.add_argument("--reserve-gib", default="2", metavar="GIB", help="memory a device set aside (2)")
    parser.add_argument(
        "--compare", choices=["magicdec"], help="predictions beside published figures, and nothing else"
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the table as JSON too")
    parser.add_argument("--plot", metavar="FILE.png", type=Path, help="draw speed-up over context for every batch")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the plan; 0."""
    if arguments.compare:
        lines, found = compare_magicdec.report()
    else:
        lines, found = plan(arguments)
    print("\n".join(lines))
    if arguments.json:
        _write(arguments.json, found)
    return 0


def plan(arguments: argparse.Namespace) -> tuple[list[str], dict[str, Any]]:
    """The printed lines, and the same as data."""
    planner = _planner(arguments)
    batches, contexts = numbers("--batch", arguments.batch), numbers("--context", arguments.context)
    if arguments.plot:
        need_matplotlib()
    cells = [planner.cell(rows, context) for rows in batches for context in contexts]
    limits = [planner.limit(rows) for rows in batches]
    if arguments.plot:
        title = f"{planner.memory.target.name} on {planner.memory.device.label}, {_drafting(planner)}"
        draw(arguments.plot, title, [_curve(planner, limit) for limit in limits])
    lines = [*_heading(planner), "", *_cells(planner, cells), "", *_limits(limits)]
    return lines, _data(planner, cells, limits)


def _planner(arguments: argparse.Namespace) -> Planner:
    for option in ("model", "device"):
        if getattr(arguments, option) is None:
            raise OptionError(f"plan needs --{option} NAME.")
    target = model_shape(arguments.model)
    draft = model_shape(arguments.draft) if arguments.draft else None
    machine = device(arguments.device, whole("--devices", arguments.devices))
    machine = dataclasses.replace(machine, launch=machine.launch + _number(arguments, "launch_us") * 1e-6)
    return Planner(
        cost=Roofline(target, machine, {"model": draft} if draft else {}),
        memory=DeviceMemory(target, machine, draft, _number(arguments, "reserve_gib") * GIB),
        drafter="model" if draft else "self",
        acceptance=acceptance(arguments.acceptance, arguments.budget),
        max_gamma=whole("--max-gamma", arguments.max_gamma),
        max_size=whole("--max-size", arguments.max_size),
    )


def _number(arguments: argparse.Namespace, name: str) -> float:
    text, option = getattr(arguments, name), f"--{name.replace('_', '-')}"
    try:
        value = float(text)
    except ValueError as error:
        raise OptionError(f"{option} {text!r}: it must be a number.") from error
    if not 0 <= value < 1e6:
        raise OptionError(f"{option} {text!r}: it must not be negative.")
    return value


def _drafting(planner: Planner) -> str:
    return f"draft {planner.memory.draft.name}" if planner.memory.draft else "self-speculation"


def _heading(planner: Planner) -> list[str]:
    target, machine = planner.memory.target, planner.memory.device
    linear, attention = free_nodes(target, machine)
    rates = ", ".join(f"{ranks[0]:g} with budget {_budget(budget)}" for budget, ranks in planner.acceptance.items())
    weights, kv = target.stored_bytes / GIB, target.kv_bytes_per_token / 1024
    return [
        f"{target.name} on {machine.label}: {weights:.1f} GiB of weights, {kv:.4g} KiB of KV a token",
        f"{_drafting(planner)}, acceptance {rates}",
        f"a verify is free up to {linear:.0f} tokens of the batch in the linear layers, {attention:.0f} nodes a row in attention",
    ]


HEADER = (
    "batch",
    "context",
    "GiB",
    "most rows",
    "chain: K",
    "gamma",
    "x",
    "tree: K",
    "size",
    "depth",
    "x",
    "best",
    "x",
)


def _cells(planner: Planner, cells: Sequence[Cell]) -> list[str]:
    rows = []
    for cell in cells:
        start = [str(cell.rows), str(cell.context), f"{cell.needed / GIB:.1f}", str(cell.most_rows)]
        if cell.chain is None or cell.tree is None or cell.best is None:
            full = f"does not fit in {planner.memory.device.memory / GIB:.1f}"
            rows.append([*start, *["-"] * 7, full, "-"])
            continue
        chain, tree, best = cell.chain, cell.tree, cell.best
        rows.append(
            [
                *start,
                *(_budget(chain.budget), str(chain.size), f"{chain.speedup:.2f}"),
                *(_budget(tree.budget), str(tree.size), str(tree.depth), f"{tree.speedup:.2f}"),
                *(_named(best), f"{best.speedup:.2f}"),
            ]
        )
    return aligned(HEADER, rows)


def _named(choice: Choice) -> str:
    """The tree as `Speculator` takes it."""
    if choice.kind == "none":
        return "do not speculate"
    return (
        f"chain:length={choice.size}" if choice.kind == "chain" else f"sequoia:size={choice.size},depth={choice.depth}"
    )


def _limits(limits: Sequence[Limit]) -> list[str]:
    rows = [
        [
            str(limit.rows),
            str(limit.most_context) if limit.most_context else "weights do not fit",
            "nowhere" if limit.pays_from is None else str(limit.pays_from),
        ]
        for limit in limits
    ]
    return aligned(("batch", "longest context", "pays from context"), rows)


def _budget(budget: Budget) -> str:
    return "full" if budget is None else str(budget)


def _curve(planner: Planner, limit: Limit) -> Curve:
    longest = min(limit.most_context, LONGEST)
    contexts = sorted({min(longest, round(256 * 2 ** (step / 4))) for step in range(50)}) if longest else []
    speedups = [planner.speedup(limit.rows, context) for context in contexts]
    start = limit.pays_from if limit.pays_from is None or limit.pays_from <= longest else None
    return Curve(f"batch {limit.rows}", contexts, speedups, start, limit.most_context <= LONGEST)


def _data(planner: Planner, cells: Sequence[Cell], limits: Sequence[Limit]) -> dict[str, Any]:
    memory = planner.memory
    return {
        "model": dataclasses.asdict(memory.target),
        "draft": dataclasses.asdict(memory.draft) if memory.draft else None,
        "device": dataclasses.asdict(memory.device),
        "drafter": planner.drafter,
        "acceptance": {_budget(budget): list(ranks) for budget, ranks in planner.acceptance.items()},
        "cells": [_cell(cell) for cell in cells],
        "limits": [dataclasses.asdict(limit) for limit in limits],
    }


def _cell(cell: Cell) -> dict[str, Any]:
    def choice(made: Choice | None) -> dict[str, Any] | None:
        return None if made is None else dataclasses.asdict(made) | {"budget": _budget(made.budget)}

    plain = {"batch": cell.rows, "context": cell.context, "needed_bytes": cell.needed, "most_rows": cell.most_rows}
    return plain | {
        "fits": cell.best is not None,
        **{name: choice(getattr(cell, name)) for name in ("chain", "tree", "best")},
    }


def _write(path: Path, found: dict[str, Any]) -> None:
    try:
        path.write_text(json.dumps(found, indent=2) + "\n")
    except OSError as error:
        raise OptionError(f"Cannot write {path}: {error}") from error
