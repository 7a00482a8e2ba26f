"""The suite under pytest: `pytest -p specplug_conformance.pytest_plugin --pyargs specplug_conformance`.

Or in a test of your own: `def test_conformance(conformance_job): conformance_job()`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from specplug import SpecplugError
from specplug_conformance.engine import Job, Status, Suite, suite
from specplug_conformance.report import failure_text

_SUITE = pytest.StashKey[Suite]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options of `specplug conformance`."""
    group = parser.getgroup("specplug conformance")
    for name in ("plugin", "adapter", "check"):
        group.addoption(f"--specplug-{name}", action="append", default=[], metavar="NAME", help=f"only this {name}")
    group.addoption("--specplug-effort", default="quick", help="quick (default), normal or thorough")
    group.addoption("--specplug-seed", type=int, default=0)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes `conformance_job` runs once for every check of every plugin in every adapter."""
    if "conformance_job" not in metafunc.fixturenames:
        return
    option = metafunc.config.getoption
    try:
        chosen = suite(
            option("--specplug-plugin"),
            option("--specplug-adapter"),
            option("--specplug-check"),
            option("--specplug-effort"),
            option("--specplug-seed"),
        )
    except SpecplugError as error:
        raise pytest.UsageError(str(error)) from error
    chosen = metafunc.config.stash.setdefault(_SUITE, chosen)
    metafunc.parametrize("conformance_job", chosen.jobs, ids=lambda job: job.name, indirect=True)


@pytest.fixture
def conformance_job(request: pytest.FixtureRequest) -> Callable[[], None]:
    """Runs one check and reports as pytest does."""
    job: Any = request.param
    assert isinstance(job, Job)

    def run() -> None:
        result = request.config.stash[_SUITE].run_job(job)
        request.node.user_properties.append(("conformance", result.status.value))
        if result.status is Status.SKIPPED:
            pytest.skip(result.message)
        if result.status is Status.EXPECTED:
            pytest.xfail(result.message)
        if result.status is Status.FAILED:
            pytest.fail(failure_text(result), pytrace=False)

    return run
