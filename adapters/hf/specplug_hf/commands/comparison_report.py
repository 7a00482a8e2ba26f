"""The table and the picture of a comparison of drafters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from specplug import OptionError
from specplug.commands.plot import need_matplotlib
from specplug_hf.commands.comparison_drafters import ENTRIES, Absent, Entry
from specplug_hf.commands.comparison_result import Figures, Kind, Line

WIDTH = 150  # columns of the table


def show(found: Sequence[Line], absent: Sequence[Absent], kinds: Sequence[Kind]) -> None:
    """Print one row a drafter, in the order of the table of entries, then the reasons of those that could not take part."""
    table = Table(
        title=r"speed-up over plain generate: median \[quartiles]; accepted length, the bonus token included; acceptance",
        box=None, pad_edge=False, padding=(0, 2, 0, 0), title_justify="left",
    )  # fmt: skip
    table.add_column("drafter", no_wrap=True)
    for kind in kinds:
        for head in (f"{kind.name}:\nx plain", "\nlength", "\naccepted"):
            table.add_column(head, justify="right", no_wrap=True)
    table.add_column("extra\nmemory", justify="right", no_wrap=True)
    present, missing = {line.name: line for line in found}, {one.name: one for one in absent}
    for entry in ENTRIES:
        if entry.name in present:
            line = present[entry.name]
            cells = [cell for kind in kinds for cell in _cells(line.figures[kind.name])]
            table.add_row(entry.name, *cells, megabytes(line.memory_bytes))
        else:
            table.add_row(entry.name, "not available", style="dim")
    console = Console(width=WIDTH, highlight=False)
    console.print(table)
    for entry in ENTRIES:
        if entry.name in missing:
            console.print(f"{entry.name} is not available: {missing[entry.name].why}", markup=False)
    for entry in ENTRIES:
        if entry.parts and entry.name in present:
            _show_beside_parts(console, entry, kinds)
    for kind in kinds:
        console.print(
            f"{kind.name}, texts: {len(kind.measured)}; {100 * kind.share:.0f} % of the n-grams that the target writes stood "
            f"before; plain generate {kind.rate.text(0)} tokens/s",
            markup=False,
        )


def _show_beside_parts(console: Console, entry: Entry, kinds: Sequence[Kind]) -> None:
    """What uniting trees is worth: with the same tree, since each drafter's own choice is the fastest and not the longest."""
    for kind in kinds:
        lengths = kind.beside_parts(entry).items()
        listed = ", ".join(f"{tree} {own:.2f} to {best:.2f}" for tree, (own, best) in lengths)
        if listed:
            parts = " or ".join(entry.parts)
            console.print(
                f"{entry.name}, length beside {parts} with the same tree, {kind.name}: {listed}", markup=False
            )


def _cells(figures: Figures) -> tuple[str, str, str]:
    accepted = "" if figures.acceptance is None else f"{100 * figures.acceptance:.0f} %"
    return escape(figures.speedup.text()), f"{figures.accepted_length:.2f}", accepted


def megabytes(count: int) -> str:
    """Bytes as people read them: `3.1 MB`."""
    return "0" if count == 0 else f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def draw(path: Path, title: str, found: Sequence[Line], absent: Sequence[Absent], kinds: Sequence[Kind]) -> None:
    """Write grouped bars to `path` (PNG, or what its ending says): speed-up with quartiles, accepted length."""
    figure = need_matplotlib().Figure(figsize=(10, 6), dpi=90, layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    present, missing = {line.name: line for line in found}, {one.name for one in absent}
    names = [entry.name for entry in ENTRIES if entry.name in present or entry.name in missing]
    places = {name: place for place, name in enumerate(names)}
    width = 0.8 / len(kinds)
    for number, kind in enumerate(kinds):
        shift = (number - (len(kinds) - 1) / 2) * width
        bars = [(places[name] + shift, line.figures[kind.name]) for name, line in present.items()]
        at = [place for place, _ in bars]
        _speedups(above, at, [each for _, each in bars], width, kind.name)
        below.bar(at, [each.accepted_length for _, each in bars], width)
    for axes in (above, below):
        axes.axhline(1.0, color="grey", linewidth=0.8)
        axes.grid(axis="y", alpha=0.3)
        for name in missing:
            axes.text(
                places[name], 0.05, "not available", rotation=90, ha="center", va="bottom", fontsize=8, color="grey"
            )
    above.set(title=title, ylabel="speed-up over plain")
    above.legend()
    below.set(ylabel="accepted length")
    below.set_xticks(range(len(names)), names, rotation=30, ha="right")
    below.set_xlim(-0.6, len(names) - 0.4)
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise OptionError(f"Cannot write the picture {path}: {error}") from error


def _speedups(axes: Any, at: Sequence[float], figures: Sequence[Figures], width: float, label: str) -> None:
    """Bars at the medians, whiskers from quartile to quartile."""
    medians = [each.speedup.median for each in figures]
    down = [each.speedup.median - each.speedup.low for each in figures]
    up = [each.speedup.high - each.speedup.median for each in figures]
    axes.bar(at, medians, width, yerr=[down, up], error_kw={"linewidth": 0.8}, label=label)
