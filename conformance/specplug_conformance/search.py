"""Hypothesis drives the checks: strategies for requests and set-ups, and a search that ends in the smallest failure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from hypothesis import strategies as st

from specplug_conformance.check import Trial
from specplug_conformance.request import Request

Value = TypeVar("Value")

TREES = (
    "chain:length=1", "chain:length=4", "kary:branch=2,depth=2", "kary:branch=3,depth=1", "sequoia:size=6,depth=3",
    "sequoia:size=12,depth=5",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Scene:
    """A request, the tree to fill, and in which rounds to speculate (True: all of them)."""

    request: Request
    tree: str
    always: bool = True


def prompts(vocab: int, rows: int = 4, longest: int = 12) -> st.SearchStrategy[tuple[tuple[int, ...], ...]]:
    """Ragged prompts; half of them repeat themselves, so that there is something to look up."""
    token = st.integers(0, vocab - 1)
    fresh = st.lists(token, min_size=2, max_size=longest)
    again = st.lists(token, min_size=1, max_size=longest // 2).map(lambda tokens: tokens * 2)
    return st.lists(st.one_of(fresh, again).map(tuple), min_size=1, max_size=rows).map(tuple)


def scenes(vocab: int, rows: int = 4, **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Scene]:
    """Requests of up to `rows` rows with any tree. `fields`: further fields of the request."""
    request = st.builds(Request, prompts(vocab, rows), new_tokens=st.integers(1, 14), **fields)
    return st.builds(Scene, request, st.sampled_from(TREES), st.booleans())


def search(
    trial: Trial,
    strategy: st.SearchStrategy[Value],
    test: Callable[[Value], None],
    kept: Sequence[Value] = (),
    share: float = 1.0,
) -> None:
    """Run `test` on `kept` examples and on others from `strategy`; what it raises is the smallest failure found."""
    failure = next(filter(None, (_raised(test, value) for value in kept)), None)

    @seed(trial.seed)
    @settings(
        max_examples=max(1, round(trial.effort.examples * share)),
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        verbosity=Verbosity.quiet,
        phases=(Phase.generate, *([Phase.shrink] if trial.effort.shrink else [])),
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def run(value: Value) -> None:
        test(value)

    if failure is None or trial.effort.shrink:
        run()
    if failure is not None:
        raise failure


def _raised(test: Callable[[Value], None], value: Value) -> Exception | None:
    try:
        test(value)
    except Exception as error:  # a plugin's own, or a Failure: raised again once there is no smaller one
        return error
    return None
