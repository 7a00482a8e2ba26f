"""What was measured: as rows of a table, printed as they come, and as JSON, whole after every case."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from specplug_kernels.bench.case import Case
from specplug_kernels.bench.machine import Machine
from specplug_kernels.bench.timing import Timing

READING = "reading once"
"""The row of the comparison that only reads what an operation has to read."""

_COLUMNS = (
    ("operation", -24), ("shape", -44), ("backend", -18), ("MB", 9), ("Mop", 10), ("floor us", 10), ("by", -10),
    ("median us", 11), ("+-", 9), ("GB/s", 7), ("x floor", 9), ("x reading", 9),
)  # fmt: skip
"""Headers and widths; negative: to the left."""


@dataclass(frozen=True, slots=True)
class Record:
    """One backend at one case. Without ``timing`` it did not run, and ``reason`` says why.

    ``floor_us``: the least time in microseconds, which ``bound`` sets (bytes or operations). ``to_floor``, ``to_reading``: the
    median over the floor, and over the median of reading once, which was measured in turn with it.
    """

    operation: str
    shape: str
    backend: str
    chosen: bool  # "auto" picks it
    bytes: int | None
    operations: int | None
    floor_us: float | None
    bound: str | None
    reason: str | None = None
    timing: Timing | None = None
    gigabytes_per_second: float | None = None
    to_floor: float | None = None
    to_reading: float | None = None


def records(case: Case, machine: Machine, timings: Mapping[str, Timing], absent: Mapping[str, str]) -> Iterable[Record]:
    """The case's backends that were timed, then those that were not."""
    work = case.work
    floor, bound = (None, None) if work is None else machine.floor(work)
    reading = timings.get(READING)
    for backend in (*timings, *absent):
        record = Record(
            operation=case.operation,
            shape=case.label,
            backend=backend,
            chosen=backend == case.chosen,
            bytes=work and work.bytes,
            operations=work and work.operations,
            floor_us=floor and floor * 1e6,
            bound=bound,
            reason=absent.get(backend),
        )
        timing = timings.get(backend)
        yield record if timing is None else _timed(record, timing, reading)


def _timed(record: Record, timing: Timing, reading: Timing | None) -> Record:
    assert record.floor_us is not None and record.bytes is not None, "what was called was counted"
    return replace(
        record,
        timing=timing,
        gigabytes_per_second=record.bytes / timing.median * 1e-3,
        to_floor=timing.median / record.floor_us,
        to_reading=None if reading is None else timing.median / reading.median,
    )


class Report:
    """Prints rows as they come, and keeps a JSON file that is whole at any moment."""

    def __init__(self, machine: Machine, file: str | None) -> None:
        self._file = None if file is None else Path(file)
        self._machine = machine
        self._records: list[Record] = []

    def begin(self) -> None:
        """Say what the floors rest on, and the columns."""
        m = self._machine
        print(f"{m.name}, torch {torch.__version__}")
        print(
            f"bandwidth {m.bandwidth * 1e-9:.1f} GB/s ({m.bandwidth_how}), arithmetic {m.arithmetic * 1e-9:.0f} Gop/s ({m.arithmetic_how})"
        )
        print(
            "floor: the larger of bytes / bandwidth and operations / arithmetic; times: medians +- quartile spread; *: auto"
        )
        print(_row([name for name, _ in _COLUMNS]), flush=True)

    def add(self, records: Iterable[Record]) -> None:
        """Print the rows of a case and write the file anew."""
        for record in records:
            print(_row(_cells(record)), flush=True)
            self._records.append(record)
        self._write(finished=False)

    def finish(self) -> None:
        """Mark the file as complete."""
        self._write(finished=True)

    def _write(self, *, finished: bool) -> None:
        """To a temporary file first: a run that is cut off leaves the last whole one."""
        if self._file is None:
            return
        told: dict[str, Any] = {
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "machine": asdict(self._machine) | {"device": str(self._machine.device)},
            "finished": finished,
            "cases": [asdict(record) for record in self._records],
        }
        temporary = self._file.with_name(self._file.name + ".part")
        temporary.write_text(json.dumps(told, indent=1), encoding="utf-8")
        os.replace(temporary, self._file)


def _cells(record: Record) -> list[str]:
    known = [
        record.operation,
        record.shape,
        record.backend + "*" * record.chosen,
        _number(record.bytes, 1e-6, 3),
        _number(record.operations, 1e-6, 1),
        _number(record.floor_us, 1, 1),
        record.bound or "",
    ]
    if record.timing is None:
        return [*known, f"  not run: {record.reason}"]
    return [
        *known,
        _number(record.timing.median, 1, 1),
        _number(record.timing.spread, 1, 1),
        _number(record.gigabytes_per_second, 1, 1),
        _number(record.to_floor, 1, 2),
        _number(record.to_reading, 1, 2),
    ]


def _number(number: float | None, factor: float, digits: int) -> str:
    return "" if number is None else f"{number * factor:.{digits}f}"


def _row(cells: list[str]) -> str:
    """Aligned; a last cell that is a sentence may run over."""
    parts = []
    for cell, (_, width) in zip(cells, _COLUMNS, strict=False):
        parts.append(f"{cell:<{-width}}" if width < 0 else f"{cell:>{width}}")
    return " ".join(parts)
