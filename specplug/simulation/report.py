"""What `specplug simulate` prints and writes: a table by rate, and everything as data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from specplug.commands.tables import aligned
from specplug.simulation.contestants import PLAIN, Contestant
from specplug.simulation.experiment import Level
from specplug.simulation.metrics import Interval

ENOUGH = 3  # seeds from which on an interval says something


def lines(levels: Sequence[Level], field: Sequence[Contestant]) -> list[str]:
    """The tables: latency by rate, then each choosing controller beside the better of plain and every fixed length."""
    found = ["Mean latency, and how many times lower than plain decoding's (medians over seeds)"]
    others = [contestant.name for contestant in field if contestant.name != PLAIN]
    found += aligned(("rate", "batch", "plain s", *others), [_latencies(level, others) for level in levels])
    for contestant in field:
        if contestant.length is None:
            found += ["", *_beside(levels, field, contestant)]
    return found


def _latencies(level: Level, others: Sequence[str]) -> list[str]:
    plain = level.runs[PLAIN]
    row = [f"{level.rate:g}", _median([m.batch for m in plain], 1), _median([m.latency for m in plain], 2)]
    for name in others:
        ratios = [p.latency / m.latency for p, m in zip(plain, level.runs[name], strict=True)]
        row += [_median(ratios, 2)]
    return row


def _beside(levels: Sequence[Level], field: Sequence[Contestant], contestant: Contestant) -> list[str]:
    """A controller's own table. A shortfall is in per cent; below 0 it is better than the best."""
    header = (
        "rate",
        "x plain",
        "best",
        "x plain",
        "latency short",
        "goodput short",
        "p99 s",
        "tok/s",
        "draft",
        "kept",
        "off",
    )
    rows = []
    for level in levels:
        compared, own = level.comparisons(field)[contestant.name], level.runs[contestant.name]
        rows.append(
            [
                f"{level.rate:g}",
                f"{compared.speedup.median:.2f}",
                compared.best,
                f"{compared.best_speedup.median:.2f}",
                _per_cent(compared.shortfall, len(own)),
                _per_cent(compared.goodput_shortfall, len(own)),
                _median([m.p99 for m in own], 2),
                _median([m.throughput for m in own], 0),
                _median([m.length for m in own], 1),
                _median([m.accepted_length for m in own], 2),
                f"{100 * Interval.of([m.plain_rounds for m in own]).median:.0f}%",
            ]
        )
    return [f"{contestant.name}, beside the better of plain and every fixed length", *aligned(header, rows)]


def _median(values: Sequence[float], digits: int) -> str:
    return f"{Interval.of(values).median:.{digits}f}"


def _per_cent(interval: Interval, seeds: int) -> str:
    middle = f"{100 * interval.median:+.1f}%"
    if seeds < ENOUGH:
        return middle
    return f"{middle} ({100 * interval.low:+.1f} to {100 * interval.high:+.1f})"


def worst(levels: Sequence[Level], field: Sequence[Contestant], name: str) -> tuple[float, float]:
    """The rate at which `name` falls short most in the median, by latency, and by how much."""
    found = [(level.comparisons(field)[name].shortfall.median, level.rate) for level in levels]
    shortfall, rate = max(found)
    return rate, shortfall


def data(levels: Sequence[Level], field: Sequence[Contestant]) -> list[dict[str, Any]]:
    """By rate: every run of every contestant (one for each seed), and the comparisons."""
    return [
        {
            "rate": level.rate,
            "runs": {name: [asdict(metrics) for metrics in runs] for name, runs in level.runs.items()},
            "comparisons": {name: asdict(compared) for name, compared in level.comparisons(field).items()},
        }
        for level in levels
    ]
