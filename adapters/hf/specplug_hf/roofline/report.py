"""The tables that `specplug roofline` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from specplug_hf.commands.table import table
from specplug_hf.roofline.grid import GOALS
from specplug_hf.roofline.result import GOAL_SHARE, GOAL_STEP, CellResult, SpeedUp

RANDOM = "random weights and a random cache: times are real, acceptance is not and is assumed"
PARTS = ("part", "ms", "quartiles", "limit", "x limit", "x at copy")
SPEEDUPS = ("acceptance", "theory: gamma", "x", "measured: gamma", "round ms", "x transformers", "x none", "of theory")


def header(environment: Mapping[str, Any]) -> str:
    """What was run where."""
    return "\n".join([RANDOM, *(f"{name}: {value}" for name, value in environment.items())])


def cell(result: CellResult) -> str:
    """One cell's parts, and what they make of speculation."""
    lines = [f"{result.cell}, {result.seconds:.0f} s", table(PARTS, _parts(result), right=range(1, len(PARTS)))]
    if result.speedups:
        lines += ["", table(SPEEDUPS, [_speedup(line) for line in result.speedups], right=range(len(SPEEDUPS)))]
    if result.whole is not None:
        whole = result.whole
        lines.append(
            f"whole rounds with a chain of {whole.gamma}: {_spread(whole.seconds)[0]} ms [{_spread(whole.seconds)[1]}], "
            f"the parts add up to {1e3 * whole.parts:.2f}"
        )
    lines += [f"left out: {line}" for line in result.left_out]
    return "\n".join(lines)


def _parts(result: CellResult) -> list[list[str]]:
    return [
        [
            part.name, *_spread(part.seconds), f"{1e3 * part.limit:.2f}",
            f"{part.seconds.median / part.limit:.2f}", f"{part.seconds.median / part.at_copy:.2f}",
        ]
        for part in result.parts.values()
    ]  # fmt: skip


def _spread(seconds: Any) -> tuple[str, str]:
    return f"{1e3 * seconds.median:.2f}", f"{1e3 * seconds.low:.2f}-{1e3 * seconds.high:.2f}"


def _speedup(line: SpeedUp) -> list[str]:
    return [
        f"{line.acceptance:g}", str(line.theory_gamma), f"{line.theory:.2f}", str(line.gamma),
        f"{1e3 * line.seconds:.2f}", _number(line.over_transformers), _number(line.over_none),
        "-" if line.share is None else f"{100 * line.share:.0f} %",
    ]  # fmt: skip


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def goals(results: Sequence[CellResult]) -> str:
    """The goals beside what was measured; of a cell that was not measured it is said."""
    found = {result.cell: result for result in results}
    lines = []
    for wanted in GOALS:
        result = found.get(wanted)
        speedups = [] if result is None else [line for line in result.speedups if line.share is not None]
        for line in speedups:
            what = f"{wanted}, acceptance {line.acceptance:g}: {100 * GOAL_SHARE:.0f} % of the theoretical speed-up"
            lines.append([what, f"{100 * line.share:.0f} %", _reached(line.share >= GOAL_SHARE)])  # type: ignore[operator]
        if not speedups:
            lines.append([f"{wanted}: {100 * GOAL_SHARE:.0f} % of the theoretical speed-up", "-", "not measured"])
        over = None if result is None else result.step_over_weights
        what = f"{wanted}: a draft step within {GOAL_STEP:g} x reading the weights once"
        lines.append([what, _number(over), "not measured" if over is None else _reached(over <= GOAL_STEP)])
    return table(("goal", "measured", ""), lines, right=(1,))


def _reached(is_reached: bool) -> str:
    return "reached" if is_reached else "NOT REACHED"
