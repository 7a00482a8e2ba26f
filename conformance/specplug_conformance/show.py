"""The report on a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from specplug_conformance.engine import FALSE_ALARM, Status
from specplug_conformance.report import Report

MARKS = {Status.PASSED: "ok", Status.FAILED: "F!", Status.SKIPPED: "-", Status.EXPECTED: "xf"}  # narrow: 16 columns
STYLES = {Status.PASSED: "green", Status.FAILED: "bold red", Status.SKIPPED: "dim", Status.EXPECTED: "yellow"}


def show(report: Report, console: Console) -> None:
    """Print the matrix (checks by number), what the numbers mean, and the verdict."""
    columns, cells = report.columns(), report.cells()
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("plugin", "adapter", *(str(i + 1) for i in range(len(columns))), "s"):
        table.add_column(name, overflow="fold", no_wrap=name != "plugin", justify="right" if name == "s" else "left")
    for kind, case, adapter in report.rows():
        found = [cells.get((kind, case, adapter, name)) for name in columns]
        marks = ["" if r is None else f"[{STYLES[r.status]}]{MARKS[r.status]}[/]" for r in found]
        seconds = sum(r.seconds for r in found if r is not None)
        table.add_row(f"{kind} {case}", adapter, *marks, f"{seconds:.1f}")
    console.print(table)
    console.print(f"\n{', '.join(f'{mark} {status.value}' for status, mark in MARKS.items())}", highlight=False)
    console.print(", ".join(f"{i + 1} {name}" for i, name in enumerate(columns)), highlight=False)
    for result in report.results:
        if result.notes and any("tie" in note for note in result.notes):
            console.print(
                f"{result.case} in {result.adapter}, {result.check}: {'; '.join(result.notes)}", highlight=False
            )
    versions = ", ".join(f"{name} {version}" for name, version in report.environment.items())
    console.print(
        f"{versions}; seed {report.seed}; false alarms of a whole run: at most {FALSE_ALARM:g}", highlight=False
    )
    console.print(f"[{'bold green' if report.ok else 'bold red'}]{report.summary()}[/]", highlight=False)
