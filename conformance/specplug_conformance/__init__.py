"""Proof for any drafter, KV policy, tree, controller and adapter: is the output really unchanged?

`specplug conformance` runs every check on every installed plugin in every installed adapter; `suite(...).run()` does so
from Python, `pytest -p specplug_conformance.pytest_plugin` from pytest. Authors contribute `Case`s, adapters a `Subject`.
"""

from specplug_conformance.case import Case, known_cases
from specplug_conformance.check import Check, Effort, Failure, Skipped, Trial, all_checks, check
from specplug_conformance.engine import Result, Status, Suite, suite
from specplug_conformance.request import Request
from specplug_conformance.subject import Feature, State, Subject, Watch, World

__all__ = [
    "Case", "Check", "Effort", "Failure", "Feature", "Request", "Result", "Skipped", "State", "Status", "Subject", "Suite",
    "Trial", "Watch", "World", "all_checks", "check", "known_cases", "suite",
]  # fmt: skip
