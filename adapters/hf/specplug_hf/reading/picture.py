"""The survey of policies as a picture: acceptance over context, over what was generated, and of needles, with intervals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from specplug import OptionError
from specplug.commands.plot import need_matplotlib, short
from specplug_hf.reading.found import BASE, Found, Shares

Point = tuple[float, float, float]  # a value, the ends of its interval (the value itself where there is none)
Lines = dict[str, dict[int, Point]]  # by policy and place

# One colour and one mark a policy, in every panel, whichever policies were measured.
STYLES = {
    "full": ("#444444", "."),
    "streaming": ("#d62728", "s"),
    "lambda": ("#ff9896", "D"),
    "snapkv once": ("#6baed6", "v"),
    "snapkv": ("#08519c", "^"),
    "retrieval": ("#2ca02c", "o"),
    "squeezed": ("#9467bd", "P"),
    "kvpress": ("#8c564b", "X"),
}
APART = 0.018  # of the axis' length between the marks of two policies at one place, or intervals would hide each other


def draw(found: Found, title: str, path: Path) -> None:
    """One column for each question: above, acceptance by policy; below, what it is over streaming's on the same texts."""
    figure = need_matplotlib().Figure(figsize=(13, 7.5), dpi=90, layout="constrained")
    figure.suptitle(f"{title}; bars are 95 % intervals, by how texts differ", fontsize="medium")
    questions: list[tuple[str, str, Shares, bool]] = [
        ("behind a prompt", "context (tokens)", found.context, True),
        ("during a long generation", "tokens generated (start of the bin)", found.generated, False),
        ("tokens that a needle changes", "context (tokens)", found.needle, True),
    ]
    axes = figure.subplots(2, len(questions), sharex="col", squeeze=False)
    for column, (name, label, shares, doubling) in enumerate(questions):
        above, below = axes[0, column], axes[1, column]
        _panel(above, _shares(shares), doubling)
        _panel(below, _over_base(found, shares), doubling)
        above.set(title=name)
        below.axhline(0, color=STYLES[BASE][0], linewidth=1)
        below.set(xlabel=label)
    axes[0, 0].set_ylabel("acceptance of a draft token")
    axes[1, 0].set_ylabel(f"difference from {BASE}")
    handles, names = max((one.get_legend_handles_labels() for one in axes[0]), key=lambda found: len(found[1]))
    figure.legend(handles, names, loc="outside lower center", ncols=max(1, len(names)), fontsize="small", frameon=False)
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise OptionError(f"Cannot write the picture {path}: {error}") from error


def _shares(shares: Shares) -> Lines:
    return {
        name: {at: (by[at].value, *(by[at].interval or (by[at].value,) * 2)) for at in sorted(by) if by[at].trials}
        for name, by in shares.items()
    }


def _over_base(found: Found, shares: Shares) -> Lines:
    gaps = found.differences(shares)
    over = {name: gaps.get(f"{name} - {BASE}", {}) for name in shares}
    return {
        name: {at: (gap.mean, *(gap.interval or (gap.mean,) * 2)) for at, gap in by.items() if gap is not None}
        for name, by in over.items()
    }


def _panel(axes: Any, lines: Lines, doubling: bool) -> None:
    ticks = sorted({at for by in lines.values() for at in by})
    if doubling:
        axes.set_xscale("log", base=2)
    for place, (name, by) in enumerate(lines.items()):
        if not by:
            continue
        at, values = list(by), [value for value, _, _ in by.values()]
        # an interval of Wilson's does not reach a share of 1 or 0 quite
        below = [max(0.0, value - low) for value, low, _ in by.values()]
        above = [max(0.0, high - value) for value, _, high in by.values()]
        colour, mark = STYLES.get(name, ("black", "x"))
        where = _moved(at, ticks, place - (len(lines) - 1) / 2, doubling)
        axes.plot(where, values, color=colour, marker=mark, markersize=5, linewidth=1.4, label=name)
        axes.errorbar(where, values, yerr=[below, above], fmt="none", color=colour, elinewidth=1, capsize=2, alpha=0.5)
    axes.set_xticks(ticks, [short(at) for at in ticks], minor=False)
    axes.minorticks_off()
    axes.grid(alpha=0.3)


def _moved(at: list[int], ticks: list[int], steps: float, doubling: bool) -> list[float]:
    """Places moved a little to one side, as far as the axis' kind asks."""
    if doubling:
        return [x * (ticks[-1] / ticks[0] if len(ticks) > 1 else 1) ** (APART * steps) for x in at]
    return [x + APART * steps * (ticks[-1] - ticks[0]) for x in at]
