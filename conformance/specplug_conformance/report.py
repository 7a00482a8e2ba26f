"""The report of a run: one matrix, plugin and adapter by check, then what failed and how to see it again."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import torch

import specplug
from specplug_conformance.check import all_checks
from specplug_conformance.engine import FALSE_ALARM, Result, Status, Suite


@dataclass(frozen=True, slots=True)
class Report:
    """Results with what they depend on. `alarm`: p-value below which one chi-square test was a failure."""

    results: tuple[Result, ...]
    environment: dict[str, str]
    effort: dict[str, int]
    seed: int
    alarm: float
    began: str

    @property
    def ok(self) -> bool:
        """Whether something was checked and nothing failed that was not expected to."""
        return any(r.status is not Status.SKIPPED for r in self.results) and all(r.ok for r in self.results)

    @property
    def failed(self) -> list[Result]:
        return [r for r in self.results if not r.ok]

    def columns(self) -> list[str]:
        """Checks that took part, in order."""
        present = {r.check for r in self.results}
        known = [check.name for check in all_checks() if check.name in present]
        return known + sorted(present - set(known))

    def rows(self) -> list[tuple[str, str, str]]:
        """(kind, plugin, adapter), in order of appearance."""
        return list(dict.fromkeys((r.kind, r.case, r.adapter) for r in self.results))

    def cells(self) -> dict[tuple[str, str, str, str], Result]:
        """Results by kind, plugin, adapter and check."""
        return {(r.kind, r.case, r.adapter, r.check): r for r in self.results}

    def summary(self) -> str:
        """One line."""
        counts = Counter(r.status for r in self.results)
        parts = [f"{counts[status]} {status.value}" for status in Status if counts[status]]
        seconds = sum(r.seconds for r in self.results)
        return f"{'CONFORMS' if self.ok else 'DOES NOT CONFORM'}: {', '.join(parts)} in {seconds:.0f} s"

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "conforms": self.ok,
            "began": self.began,
            "environment": self.environment,
            "effort": self.effort,
            "seed": self.seed,
            "false_alarm_of_the_run": FALSE_ALARM,
            "alarm_of_one_test": self.alarm,
            "checks": {check.name: check.proves for check in all_checks()},
            "results": [asdict(r) | {"status": r.status.value, "notes": list(r.notes)} for r in self.results],
        }

    def json(self) -> str:
        return json.dumps(self.as_dict(), indent=1, default=str) + "\n"


def report(suite: Suite, results: Sequence[Result]) -> Report:
    """The report of `results` of `suite`."""
    return Report(
        tuple(results), environment(), asdict(suite.effort), suite.seed, suite.alarm,
        datetime.now(UTC).isoformat(timespec="seconds"),
    )  # fmt: skip


def environment() -> dict[str, str]:
    """Versions that a verdict holds for."""
    found = {
        "specplug": specplug.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": f"{sys.platform} {platform.machine()}",
    }
    for name in ("transformers", "sglang", "flashinfer-python", "triton"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def failure_text(result: Result) -> str:
    """What failed, and how to see it again."""
    lines = [f"{result.kind} {result.case!r} in {result.adapter}, check {result.check!r}: {result.message}"]
    for name, value in result.reproduction.items():
        text = str(value).rstrip()
        if "\n" in text:
            lines.append(f"    {name}:")
            lines += [f"        {line}" for line in text.splitlines()[-12:]]
        else:
            lines.append(f"    {name}: {text if len(text) < 300 else text[:300] + ' ...'}")
    return "\n".join(lines)
