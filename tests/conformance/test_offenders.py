"""The suite is tested: which offender fails which check, and that what is right fails none."""

from __future__ import annotations

import pytest
from offenders import MODEL, OFFENDERS, Offender

from specplug_conformance import Case, Effort, Status, all_checks, suite
from specplug_conformance.toy.subject import ToySubject

EFFORT = Effort(examples=4, samples=600, shrink=False)
TOY = Case("toy", "adapter", ToySubject)


def failing(case: Case) -> dict[str, str]:
    """Checks that `case` fails in the toy adapter, and what they say."""
    chosen = suite(cases=[case]) if case.kind == "adapter" else suite([case.name], cases=[TOY, case])
    chosen.effort = EFFORT
    return {result.check: result.message for result in chosen.run() if result.status is Status.FAILED}


@pytest.mark.parametrize("offender", OFFENDERS, ids=lambda offender: offender.name)
def test_an_offender_fails_its_checks_and_no_others(offender: Offender, monkeypatch: pytest.MonkeyPatch) -> None:
    offender.patch(monkeypatch)
    found = failing(offender.case)
    assert offender.fails <= set(found) <= offender.fails | offender.may, found


def test_the_good_reference_fails_none() -> None:
    assert failing(MODEL) == {}


def test_every_check_has_an_offender() -> None:
    assert set().union(*(offender.fails for offender in OFFENDERS)) == {check.name for check in all_checks()}
