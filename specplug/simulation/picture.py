"""Latency over the rate of requests, as a picture: every contestant beside plain decoding."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from specplug.commands.plot import need_matplotlib
from specplug.errors import OptionError
from specplug.simulation.contestants import PLAIN, STANDBY, Contestant
from specplug.simulation.experiment import Level
from specplug.simulation.metrics import Interval

_LINES = {PLAIN: "--", STANDBY: ":"}


def draw(path: Path, title: str, levels: Sequence[Level], field: Sequence[Contestant]) -> None:
    """Write mean latency, and how much lower than plain decoding's, to `path` (PNG, or what its ending says)."""
    figure = need_matplotlib().Figure(figsize=(10, 4), dpi=90, layout="constrained")
    left, right = figure.subplots(1, 2)
    rates = [level.rate for level in levels]
    fixed = [contestant for contestant in field if contestant.length]
    for contestant in field:
        name = contestant.name
        latencies = [Interval.of([m.latency for m in level.runs[name]]).median for level in levels]
        ratios = [
            Interval.of([p.latency / m.latency for p, m in zip(level.runs[PLAIN], level.runs[name], strict=True)])
            for level in levels
        ]
        if contestant.length is not None:
            shade = 0.75 - 0.5 * fixed.index(contestant) / max(1, len(fixed) - 1) if contestant.length else 0.0
            style = {"color": str(shade), "linewidth": 1.0, "linestyle": "-" if contestant.length else _LINES[name]}
        else:
            style = {"linewidth": 2.2, "marker": "o", "markersize": 4}
        left.plot(rates, latencies, label=name, **style)
        (line,) = right.plot(rates, [ratio.median for ratio in ratios], label=name, **style)
        if contestant.length is None:
            low, high = [ratio.low for ratio in ratios], [ratio.high for ratio in ratios]
            right.fill_between(rates, low, high, alpha=0.2, color=line.get_color())
    left.set(title="mean latency", xlabel="requests a second", ylabel="seconds from arrival to last token")
    left.set_ylim(bottom=0)
    right.set(title="plain decoding's latency over its own", xlabel="requests a second", ylabel="times lower")
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.grid(alpha=0.3)
    right.legend(fontsize=8)
    figure.suptitle(title, fontsize=10)
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise OptionError(f"Cannot write the picture {path}: {error}") from error
