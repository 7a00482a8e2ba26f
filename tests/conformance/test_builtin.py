"""Every built-in plugin in every adapter of this repository, and the README's drafter, pass every check: `make conformance`, quick."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from specplug_conformance import Case, known_cases, suite


def test_the_built_in_plugins_conform(conformance_job: Callable[[], None]) -> None:
    conformance_job()


def test_the_drafter_of_the_readme_conforms() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    code = readme.split("<!-- drafter -->\n```python\n")[1].split("```")[0]
    module: dict[str, Any] = {}
    exec(code, module)
    cases = [case for case in known_cases() if case.kind == "adapter"]
    results = suite(["bigram"], effort="quick", cases=[*cases, Case("bigram", "drafter", module["Bigram"])]).run()
    assert {result.adapter for result in results} == {"toy", "hf"}
    assert not [result for result in results if not result.ok]
