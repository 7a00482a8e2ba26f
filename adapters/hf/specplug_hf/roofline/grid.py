"""Which batches and contexts are measured, the most important first."""

from __future__ import annotations

from specplug import OptionError
from specplug.commands.plan_options import whole
from specplug_hf.calibration.grid import Cell

CELLS = "8x32k,30x32k,15x64k,1x32k,8x64k,32x16k,8x16k,32x4k,1x4k"
GOALS = (Cell(8, 32768), Cell(30, 32768))  # where self-speculation should reach its share of what is possible


def cells(text: str) -> list[Cell]:
    """`8x32k,1x4k`: 8 rows of 32768 tokens, then 1 of 4096; each once. Raises `OptionError`."""
    return list(dict.fromkeys(_cell(piece) for piece in text.split(",")))


def _cell(text: str) -> Cell:
    rows, cross, context = text.strip().lower().partition("x")
    if not cross:
        raise OptionError(f"--cells {text!r}: rows x context, as in 8x32k.")
    cell = Cell(whole("--cells", rows), whole("--cells", context))
    if cell.context < 2:
        raise OptionError(f"--cells {text!r}: a context of one token leaves no cache to read.")
    return cell
