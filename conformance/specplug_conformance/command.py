"""`specplug conformance`: every check on every installed plugin in every installed adapter. Loads nothing heavy."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`specplug conformance`: prove that plugins and adapters leave the output unchanged."""
    parser = subparsers.add_parser(
        "conformance",
        help="prove that plugins and adapters leave the output unchanged",
        description="Runs the conformance suite on the installed plugins in the installed adapters. Exit status 1 if "
        "anything fails that was not expected to, 2 if nothing could be checked.",
    )
    parser.add_argument("--plugin", nargs="+", default=[], metavar="NAME", help="only these plugins (default: all)")
    parser.add_argument("--adapter", nargs="+", default=[], metavar="NAME", help="only these adapters (default: all)")
    parser.add_argument("--check", nargs="+", default=[], metavar="NAME", help="only these checks (default: all)")
    parser.add_argument("--effort", default="normal", metavar="EFFORT", help="quick, normal (default) or thorough")
    parser.add_argument("--seed", type=int, default=0, help="of models, prompts and draws (default: 0)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report as JSON")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the report as a page")
    parser.add_argument("--list", action="store_true", help="list plugins, adapters and checks, and run nothing")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command; 0 if everything conforms, else 1."""
    from specplug_conformance.engine import suite  # noqa: PLC0415  (loads torch, hypothesis, scipy)

    chosen = suite(arguments.plugin, arguments.adapter, arguments.check, arguments.effort, arguments.seed)
    if arguments.list:
        return _list(chosen)
    return _run(chosen, arguments)


def _list(chosen: Any) -> int:
    from specplug_conformance.check import all_checks  # noqa: PLC0415

    wanted = {job.check.name for job in chosen.jobs}
    for title, lines in (
        ("adapters", dict.fromkeys(job.host.name for job in chosen.jobs)),
        ("plugins", dict.fromkeys(f"{job.case.kind} {job.case.name}" for job in chosen.jobs)),
        ("checks", [f"{c.name}: {c.proves}" for c in all_checks() if c.name in wanted]),
    ):
        print(f"{title}\n" + "".join(f"  {line}\n" for line in lines))
    return 0


def _run(chosen: Any, arguments: argparse.Namespace) -> int:
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415

    from specplug_conformance.html import page  # noqa: PLC0415
    from specplug_conformance.report import failure_text, report  # noqa: PLC0415
    from specplug_conformance.show import show  # noqa: PLC0415

    console = Console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=arguments.quiet) as progress:
        task = progress.add_task("conformance", total=len(chosen.jobs))

        def observe(result: Any) -> None:
            progress.update(task, advance=1, description=f"{result.case} {result.adapter} {result.check}")
            if not result.ok:
                progress.console.print(failure_text(result), markup=False, highlight=False)

        made = report(chosen, chosen.run(observe))
    show(made, console)
    if arguments.json:
        arguments.json.write_text(made.json(), encoding="utf-8")
    if arguments.html:
        arguments.html.write_text(page(made), encoding="utf-8")
    return 0 if made.ok else 1
