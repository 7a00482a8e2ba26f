"""`specplug plugins`: what is installed, and where it comes from."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from specplug.plugins import plugins


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser("plugins", help="list what is installed, and where it comes from")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the table as JSON too")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the table; status 1 if an entry point failed to load."""
    rows = [(p.kind, p.name, summary(p.factory), p.source) for p in plugins().all()]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, [*widths, 0], strict=True)).rstrip())
    for name, reason in plugins().failed.items():
        print(f"failed      {name}: {reason}")
    if arguments.json:
        listed = [dict(zip(("kind", "name", "summary", "source"), row, strict=True)) for row in rows]
        arguments.json.write_text(json.dumps({"plugins": listed, "failed": plugins().failed}, indent=2) + "\n")
    return 1 if plugins().failed else 0


def summary(factory: object) -> str:
    """First line of a docstring."""
    return (getattr(factory, "__doc__", None) or "").strip().split("\n")[0]
