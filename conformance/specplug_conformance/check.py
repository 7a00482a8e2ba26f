"""A check: a function that proves one thing of one plugin in one adapter. The registry, and what a check is given."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

from specplug import Speculator
from specplug_conformance.case import KINDS, Case
from specplug_conformance.subject import Feature, Subject, World

EVERY = frozenset(KINDS)


class Failure(Exception):  # noqa: N818  (a finding, not an error)
    """A check has found a fault. `reproduction`: the smallest call that shows it, in plain values."""

    def __init__(self, message: str, **reproduction: Any) -> None:
        super().__init__(message)
        self.message, self.reproduction = message, reproduction


class Skipped(Exception):  # noqa: N818
    """This check says nothing about this plugin in this adapter, and why."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How much a run does: examples a search tries, samples of a chi-square test, whether failures are made smaller."""

    examples: int
    samples: int
    shrink: bool = True


EFFORTS = {"quick": Effort(4, 600), "normal": Effort(15, 2000), "thorough": Effort(80, 8000)}


@dataclass(slots=True)
class Trial:
    """One case in one subject: what a check works on.

    `alarm`: how improbable a chi-square test's result must be to be a failure. `notes`: things worth saying of a check
    that passes, such as ties in floating point.
    """

    case: Case
    subject: Subject
    effort: Effort
    alarm: float
    seed: int = 0
    notes: list[str] = field(default_factory=list)
    worlds: dict[Hashable, World] = field(default_factory=dict)  # shared by the checks of a subject

    def needs(self, *features: Feature) -> None:
        """Skip unless the subject has `features`."""
        missing = sorted(feature.value for feature in features if feature not in self.subject.features)
        if missing:
            raise Skipped(f"the adapter does not offer: {', '.join(missing)}")

    def world(self, vocab: int = 13, dtype: str | None = None, seed: int | None = None) -> World:
        """A small model of the subject, in float64 if it has that, else in float32.

        Skips where it has no such dtype, and where the adapter does not offer what the plugin needs.
        """
        if dtype is None:
            dtype = "float64" if Feature.FLOAT64 in self.subject.features else "float32"
        self.needs(Feature(dtype))
        key = (self.seed if seed is None else seed, vocab, dtype)
        if key not in self.worlds:
            self.worlds[key] = self.subject.world(*key)
        missing = self.case.required(self.worlds[key]) - self.subject.capabilities
        if missing:
            raise Skipped(f"the adapter does not offer: {', '.join(sorted(missing))}")
        return self.worlds[key]

    def speculator(self, world: World, **more: Any) -> Speculator:
        """The plugin at work in `world`."""
        return self.case.speculator(world, **more)


@dataclass(frozen=True, slots=True)
class Check:
    """`proves`: one sentence. `kinds`: which plugins it applies to. `tests`: chi-square tests it makes."""

    name: str
    proves: str
    kinds: frozenset[str]
    run: Callable[[Trial], None]
    tests: int = 0


CHECKS: dict[str, Check] = {}


def check(
    name: str, proves: str, kinds: frozenset[str] = EVERY, tests: int = 0
) -> Callable[[Callable[[Trial], None]], Callable[[Trial], None]]:
    """Register the function below as a check."""

    def register(function: Callable[[Trial], None]) -> Callable[[Trial], None]:
        if name in CHECKS:
            raise ValueError(f"two checks called {name!r}")
        CHECKS[name] = Check(name, proves, kinds, function, tests)
        return function

    return register


def all_checks() -> list[Check]:
    """Every check, in the order of the report."""
    package = importlib.import_module("specplug_conformance.checks")
    for module in sorted(pkgutil.iter_modules(package.__path__), key=lambda m: m.name):
        importlib.import_module(f"{package.__name__}.{module.name}")
    return sorted(CHECKS.values(), key=lambda c: ORDER.index(c.name) if c.name in ORDER else len(ORDER))


ORDER = (
    "greedy", "greedy-fp32", "processors", "stopping", "batch", "joins", "law-exact", "law-sampled", "draws", "seeds",
    "cache", "interruption", "budget", "limits", "hostile", "rehearsal", "statistics",
)  # fmt: skip
