"""Curves as a picture. matplotlib is an extra, loaded when a picture is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specplug.errors import OptionError, SpecplugError


@dataclass(frozen=True, slots=True)
class Curve:
    """Speed-up over context. `start`: the context from which it pays. `full`: it ends because memory does. Both marked."""

    label: str
    contexts: Sequence[int]
    speedups: Sequence[float]
    start: int | None
    full: bool


def need_matplotlib() -> Any:
    """`matplotlib.figure`; without matplotlib an error that names the extra. Ask before long work."""
    try:
        return importlib.import_module("matplotlib.figure")
    except ImportError as error:
        raise SpecplugError(f"--plot needs matplotlib ({error}): pip install 'specplug[plot]'") from error


def draw(path: Path, title: str, curves: Sequence[Curve]) -> None:
    """Write the curves to `path` (PNG, or what its ending says)."""
    figure = need_matplotlib().Figure(figsize=(7, 4), dpi=90, layout="constrained")
    axes = figure.add_subplot()
    for curve in curves:
        (line,) = axes.plot(curve.contexts, curve.speedups, label=curve.label)
        if curve.contexts and curve.full:
            axes.plot(curve.contexts[-1], curve.speedups[-1], "x", color=line.get_color())
        if curve.start is not None:
            axes.plot(curve.start, 1.0, "o", color=line.get_color())
    axes.plot([], [], "o", color="grey", label="starts to pay")
    axes.plot([], [], "x", color="grey", label="memory is full")
    axes.axhline(1.0, color="grey", linewidth=0.8)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: short(int(value)))
    axes.set(title=title, xlabel="context (tokens a row)", ylabel="predicted speed-up")
    axes.grid(alpha=0.3)
    axes.legend()
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise OptionError(f"Cannot write the picture {path}: {error}") from error


def short(tokens: int) -> str:
    """A context as people write it: 32768 is 32k."""
    return f"{tokens // 1024}k" if tokens >= 1024 and tokens % 1024 == 0 else str(tokens)
