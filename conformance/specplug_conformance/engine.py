"""Running checks: every selected plugin in every selected adapter. Needs no pytest."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from time import perf_counter
from typing import Any

from specplug import OptionError
from specplug.errors import unknown_name
from specplug_conformance.case import Case, known_cases, select
from specplug_conformance.check import EFFORTS, Check, Effort, Failure, Skipped, Trial, all_checks
from specplug_conformance.subject import Subject, World

FALSE_ALARM = 1e-3  # of a whole run: the chance that any chi-square test fails although nothing is wrong


class Status(StrEnum):
    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"
    EXPECTED = "failed as expected"


@dataclass(frozen=True, slots=True)
class Result:
    """What one check said of one plugin in one adapter."""

    case: str
    kind: str
    adapter: str
    check: str
    status: Status
    seconds: float
    message: str = ""
    reproduction: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return self.status is not Status.FAILED


@dataclass(frozen=True, slots=True)
class Job:
    """A check to be run: on `case`, in the adapter of `host` (a case of kind "adapter")."""

    case: Case
    host: Case
    check: Check

    @property
    def name(self) -> str:
        return f"{self.case.kind}:{self.case.name}-{self.host.name}-{self.check.name}"


@dataclass(slots=True)
class Suite:
    """What a run consists of. `alarm`: the p-value below which one chi-square test is a failure."""

    jobs: list[Job]
    effort: Effort
    seed: int = 0
    _subjects: dict[str, Subject] = field(default_factory=dict)
    _worlds: dict[str, dict[Any, World]] = field(default_factory=dict)

    @property
    def alarm(self) -> float:
        return FALSE_ALARM / max(1, sum(job.check.tests for job in self.jobs))

    def run(self, observer: Callable[[Result], None] | None = None) -> list[Result]:
        """Every job in turn; `observer` sees each result as it comes."""
        results = []
        for job in self.jobs:
            results.append(self.run_job(job))
            if observer is not None:
                observer(results[-1])
        return results

    def run_job(self, job: Job) -> Result:
        """One check. Whatever a plugin raises is its failure, not the suite's."""
        start, trial = perf_counter(), None
        reason = job.case.expected_failures.get(job.check.name)
        try:
            trial = self._trial(job)
            job.check.run(trial)
        except Skipped as skipped:
            status, message, found = Status.SKIPPED, str(skipped), {}
        except Failure as failure:
            status, message, found = Status.FAILED, failure.message, failure.reproduction
        except Exception as error:
            where = traceback.format_exception(error)
            status, message, found = Status.FAILED, f"{type(error).__name__}: {error}", {"traceback": "".join(where)}
        else:
            status, message, found = Status.PASSED, "", {}
        if reason is not None and status is Status.FAILED:
            status, message = Status.EXPECTED, f"{reason} ({message})"
        elif reason is not None and status is Status.PASSED:
            status, message = Status.FAILED, f"it was expected to fail ({reason}) and passes"
        return Result(
            job.case.name, job.case.kind, job.host.name, job.check.name, status, perf_counter() - start, message, found,
            tuple(dict.fromkeys(trial.notes)) if trial else (),
        )  # fmt: skip

    def _trial(self, job: Job) -> Trial:
        name = job.host.name
        if name not in self._subjects:
            self._subjects[name] = job.host.factory()
        worlds = self._worlds.setdefault(name, {})
        return Trial(job.case, self._subjects[name], self.effort, self.alarm, self.seed, worlds=worlds)


def suite(
    plugins: Iterable[str] = (),
    adapters: Iterable[str] = (),
    checks: Iterable[str] = (),
    effort: str = "normal",
    seed: int = 0,
    cases: Sequence[Case] | None = None,
) -> Suite:
    """The suite for the named plugins, adapters and checks (none named: all of them).

    `cases`: instead of those that installed plugins contribute. An adapter is checked itself, with the built-in model
    drafter, unless only plugins are named. Raises `SpecplugError` for unknown names and where nothing would be checked.
    """
    listed = known_cases() if cases is None else list(cases)
    names = list(plugins)
    hosts = _named([case for case in listed if case.kind == "adapter"], list(adapters), "adapter")
    chosen = _named(all_checks(), list(checks), "check")
    if effort not in EFFORTS:
        raise unknown_name("effort", effort, EFFORTS)
    subjects = select(listed, names)
    jobs = [
        Job(case, host, check)
        for host in hosts
        for case in [*([] if names else [host]), *subjects]
        for check in chosen
        if case.kind in check.kinds
    ]
    if not jobs:
        raise OptionError(
            "No conformance case is selected, or none that a selected check applies to: nothing would be checked."
        )
    return Suite(jobs, EFFORTS[effort], seed)


def _named(known: list[Any], wanted: list[str], kind: str) -> list[Any]:
    by_name = {item.name: item for item in known}
    for name in wanted:
        if name not in by_name:
            raise unknown_name(kind, name, by_name)
    if not known:
        raise OptionError(f"No {kind} is installed that the suite could use.")
    return [by_name[name] for name in wanted] if wanted else known
