"""The cases with a goal each, for the built-in pair on two CPU cores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from specplug import OptionError
from specplug_hf.commands.cases import Case, Result
from specplug_hf.commands.summary import Spread, better_of, paired

EVERY = ("plain", "static", "none")


@dataclass(frozen=True, slots=True)
class Goal:
    """`ours` should decode at least `factor` times as fast as the best of `against`."""

    what: str
    ours: str
    against: tuple[str, ...]
    factor: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """A goal and what was measured: paired ratios against `against`, the best of the goal's list."""

    case: str
    goal: Goal
    against: str
    ratio: Spread | None

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self) | {"reached": self.reached}

    @property
    def reached(self) -> bool:
        """Whether the median ratio is at least the goal."""
        return self.ratio is not None and self.ratio.median >= self.goal.factor


def _auto(setup: str, what: str) -> Goal:
    return Goal(what, setup, ("plain", "none"), 0.95)


AUTO = (
    _auto("auto", "auto"),
    _auto("auto_first", "auto, first call"),
    _auto("auto_useless", "auto, useless draft"),
)
AUTOS = ("auto", "auto_first", "auto_useless")

CASES: tuple[tuple[Case, tuple[Goal, ...]], ...] = (
    (
        Case(
            1,
            256,
            256,
            (*EVERY, "assistant", "assistant_best", "lookup_hf", "model", "lookup", *AUTOS),
            prompts=8,
        ),
        (
            Goal("draft model", "model", ("plain",), 2.0),
            Goal("draft model", "model", ("assistant", "assistant_best"), 1.3),
            Goal("prompt lookup", "lookup", ("lookup_hf",), 1.2),
            *AUTO,
        ),
    ),
    (
        Case(4, 256, 256, (*EVERY, "model", "lookup", *AUTOS), ragged=True, prompts=3, repeats=2),
        (Goal("draft model", "model", ("plain",), 1.6), *AUTO),
    ),
    (
        Case(4, 8192, 96, (*EVERY, "self", *AUTOS), prompts=2),
        (
            Goal("self-speculation", "self", ("none",), 1.3),
            Goal("self-speculation", "self", ("static",), 1.3),
            Goal("self-speculation", "self", ("plain",), 2.0),
            *AUTO,
        ),
    ),
)

OVERHEAD_GOAL = 0.15

# The planner against what one could have fixed, had one known: batch by context, and texts that turn.
PLANNER_GOALS = (
    Goal("auto", "auto", ("best_fixed",), 0.95),
    _auto("auto", "auto"),
    _auto("auto_useless", "auto, useless draft"),
)


def _planner(rows: int, context: int, new_tokens: int = 96, turning: bool = False) -> tuple[Case, tuple[Goal, ...]]:
    names = ("plain", "none", "best_fixed", "auto", "auto_useless")
    return Case(rows, context, new_tokens, names, prompts=3, turning=turning), PLANNER_GOALS


PLANNER = (
    *(_planner(rows, context) for context in (256, 1024, 4096) for rows in (1, 2, 4, 8)),
    *(_planner(rows, 256, 192, turning=True) for rows in (1, 4)),
)


def planner_cases(
    new_tokens: int | None,
    prompts: int | None,
    repeats: int | None,
    limit: int | None = None,
    batches: Sequence[int] | None = None,
    contexts: Sequence[int] | None = None,
) -> list[tuple[Case, tuple[Goal, ...]]]:
    """The planner's grid, with other sizes where given; of `batches` and `contexts`, and of no more context than `limit` tokens.

    Raises:
        OptionError: the grid has no such cell.
    """
    within = [
        (case, goals)
        for case, goals in PLANNER
        if (limit is None or case.context <= limit)
        and (batches is None or case.rows in batches)
        and (contexts is None or case.context in contexts)
    ]
    if not within:
        rows, lengths = ({getattr(case, name) for case, _ in PLANNER} for name in ("rows", "context"))
        raise OptionError(
            f"--planner has batches of {sorted(rows)} and contexts of {sorted(lengths)}: give some of these."
        )
    return _sized(within, new_tokens, prompts, repeats, None)


def goal_cases(
    new_tokens: int | None, prompts: int | None, repeats: int | None, limit: int | None = None
) -> list[tuple[Case, tuple[Goal, ...]]]:
    """The cases, with other sizes where given. `limit`: no context longer than this many tokens."""
    return _sized(CASES, new_tokens, prompts, repeats, limit)


def _sized(
    cases: Sequence[tuple[Case, tuple[Goal, ...]]],
    new_tokens: int | None,
    prompts: int | None,
    repeats: int | None,
    limit: int | None,
) -> list[tuple[Case, tuple[Goal, ...]]]:
    changed = []
    for case, goals in cases:
        sized = replace(
            case,
            new_tokens=new_tokens or case.new_tokens,
            prompts=prompts or case.prompts,
            repeats=repeats or case.repeats,
            context=min(case.context, limit or case.context),
        )
        changed.append((sized, goals))
    return changed


def outcomes(result: Result, goals: tuple[Goal, ...]) -> list[Outcome]:
    """Every goal of a case beside what was measured."""
    listed = []
    for goal in goals:
        against = better_of(result.samples, goal.against)
        ratio = paired(result.samples, goal.ours, against) if against else None
        listed.append(Outcome(result.case.title, goal, against or "/".join(goal.against), ratio))
    return listed
