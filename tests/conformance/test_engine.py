"""The engine, its report and its front doors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from offenders import MODEL

import specplug
from specplug import Need, OptionError, UnknownNameError
from specplug.cli import main
from specplug.drafters import NoDraft, PromptLookup, SelfDraft
from specplug_conformance import Case, Failure, Status, all_checks, known_cases, suite
from specplug_conformance.check import ORDER, Check
from specplug_conformance.engine import FALSE_ALARM, Job, Suite
from specplug_conformance.html import page
from specplug_conformance.report import report
from specplug_conformance.toy.subject import ToySubject

ROOT = Path(__file__).parents[2]
TOY = Case("toy", "adapter", ToySubject)


def jobs_of(chosen: Suite) -> set[tuple[str, str, str]]:
    return {(job.case.name, job.host.name, job.check.name) for job in chosen.jobs}


def one(check: Check, case: Case) -> Suite:
    made = suite(cases=[TOY, case])
    made.jobs = [Job(case, TOY, check)]
    return made


# --- selection


def test_every_plugin_adapter_and_check_is_selected_unless_named() -> None:
    everything = jobs_of(suite())
    kinds = {case.name: case.kind for case in known_cases()}
    assert {"toy", "hf", "none", "self", "model", "prompt_lookup", "streaming", "sequoia", "auto"} <= set(kinds)
    for check in all_checks():
        for case in known_cases():
            for host in ("toy", "hf"):
                runs = (case.name, host, check.name) in everything
                own = case.kind != "adapter" or case.name == host
                assert runs == (case.kind in check.kinds and own)
    chosen = suite(["model", "chain"], ["toy"], ["greedy", "draws"])
    assert jobs_of(chosen) == {(case, "toy", check) for case in ("model", "chain") for check in ("greedy", "draws")}


def test_a_registered_plugin_needs_no_case_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    from specplug import plugins as module

    mine = module.Plugins(load_entry_points=False)

    class Stranger:
        @specplug.hookimpl
        def specplug_register_drafters(self, register: Any) -> None:
            register("quiet", NoDraft)

    mine.register(Stranger(), "a stranger")
    monkeypatch.setattr("specplug_conformance.case.plugins", lambda: mine)
    assert Case("quiet", "drafter", NoDraft) in known_cases()


def test_nothing_selected_is_an_error() -> None:
    with pytest.raises(UnknownNameError, match="'modle'.*Did you mean 'model'"):
        suite(["modle"])
    with pytest.raises(UnknownNameError, match="adapter 'vllm'"):
        suite(adapters=["vllm"])
    with pytest.raises(UnknownNameError, match="check 'gredy'"):
        suite(checks=["gredy"])
    with pytest.raises(OptionError, match="nothing would be checked"):
        suite(["model"], checks=["hostile"])  # a check of adapters only
    with pytest.raises(OptionError, match="No adapter is installed"):
        suite(cases=[MODEL])
    with pytest.raises(UnknownNameError, match="effort"):
        suite(effort="none")


def test_the_alarm_is_shared_out_over_the_tests_of_a_run() -> None:
    chosen = suite()
    tests = sum(job.check.tests for job in chosen.jobs)
    assert tests > 20
    assert chosen.alarm * tests == pytest.approx(FALSE_ALARM)
    assert suite(["model"], ["toy"], ["draws"]).alarm == FALSE_ALARM


def test_every_check_says_what_it_proves_and_has_its_place() -> None:
    assert [check.name for check in all_checks()] == list(ORDER)
    assert all(check.proves and check.kinds for check in all_checks())


# --- results


def boom(trial: Any) -> None:
    raise RuntimeError("not mine")


def fault(trial: Any) -> None:
    raise Failure("wrong", position=3)


def fine(trial: Any) -> None:
    trial.notes.append("a tie")


def made(function: Any) -> Check:
    return Check("made", "nothing", frozenset({"drafter"}), function)


@pytest.mark.parametrize(
    ("function", "expected", "status", "message"),
    [
        (fine, {}, Status.PASSED, ""),
        (fault, {}, Status.FAILED, "wrong"),
        (boom, {}, Status.FAILED, "RuntimeError: not mine"),
        (fault, {"made": "known"}, Status.EXPECTED, "known (wrong)"),
        (fine, {"made": "known"}, Status.FAILED, "it was expected to fail (known) and passes"),
    ],
)
def test_what_becomes_of_a_check(function: Any, expected: dict[str, str], status: Status, message: str) -> None:
    [result] = one(made(function), Case("none", "drafter", NoDraft, expected)).run()
    assert (result.status, result.message) == (status, message)
    assert result.ok == (status is not Status.FAILED)


def test_a_skipped_check_is_no_proof() -> None:
    class Greedy(ToySubject):
        features = frozenset()

    host = Case("poor", "adapter", Greedy)
    chosen = suite(checks=["seeds"], cases=[host])
    results = chosen.run()
    assert [r.status for r in results] == [Status.SKIPPED]
    assert "does not offer: sampling" in results[0].message
    assert not report(chosen, results).ok


def test_what_an_adapter_does_not_offer_is_skipped_by_name() -> None:
    class Poor(ToySubject):
        capabilities = ToySubject.capabilities - {Need.HISTORY}

    host = Case("poor", "adapter", Poor)
    cases = [host, Case("prompt_lookup", "drafter", PromptLookup), Case("self", "drafter", SelfDraft)]
    results = {result.case: result for result in suite(checks=["greedy"], cases=cases).run()}
    assert results["prompt_lookup"].status is Status.SKIPPED
    assert "does not offer: history" in results["prompt_lookup"].message
    assert results["self"].status is Status.PASSED


def test_a_failure_comes_with_the_smallest_reproduction(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything needed to see it again, made small by the search."""
    from specplug_conformance.toy.host import ToyHost

    real = ToyHost.distributions

    def second_best(self: Any, batch: Any, logits: Any, trees: Any) -> Any:
        targets = real(self, batch, logits, trees)
        if targets.tokens is not None and batch.context >= 4:
            return type(targets)(tokens=logits.topk(2).indices[..., 1])
        return targets

    monkeypatch.setattr(ToyHost, "distributions", second_best)
    chosen = suite(["none"], ["toy"], ["greedy"])
    [result] = chosen.run()
    found = result.reproduction
    assert result.status is Status.FAILED
    assert found["model_seed"] == 0 and found["dtype"] == "float64"
    assert len(found["prompts"]) == 1  # the kept examples have more rows
    assert found["ours"][found["position"]] != found["plain"][found["position"]]
    assert found["ours"][: found["position"]] == found["plain"][: found["position"]]
    assert found["margin"] == pytest.approx(found["top_scores"][0] - found["top_scores"][1], abs=1e-5)
    assert found["top_tokens"][0] == found["plain"][found["position"]]


def test_a_tie_is_told_from_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two equal best scores may swap in float32; two different ones may not."""
    from specplug_conformance.toy.subject import ToyWorld

    real = ToyWorld.plain

    def with_the_other_one(self: Any, request: Any) -> Any:
        texts = real(self, request)
        first = request.prompts[0]
        other = int(self.scores(first, request, len(first)).topk(2).indices[1])
        return [[other, *text[1:]] for text in texts]

    monkeypatch.setattr(ToyWorld, "plain", with_the_other_one)
    chosen = suite(["none"], ["toy"], ["greedy-fp32"])
    [result] = chosen.run()
    assert result.status is Status.FAILED
    monkeypatch.setattr("specplug_conformance.compare.TIES", {"float32": 100.0, "float64": 100.0})
    [result] = chosen.run()
    assert any("a tie, margin" in note for note in result.notes) or result.status is Status.FAILED


# --- front doors


def test_the_command_prints_and_writes_the_matrix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ["--json", str(tmp_path / "r.json"), "--html", str(tmp_path / "r.html")]
    few = ["--plugin", "prompt_lookup", "chain", "--adapter", "toy", "--check", "greedy", "budget", "--effort", "quick"]
    assert main(["conformance", *few, "--quiet", *files]) == 0
    shown = capsys.readouterr().out
    assert "CONFORMS: 3 passed" in shown and "1 greedy, 2 budget" in shown
    written = json.loads((tmp_path / "r.json").read_text())
    assert written["conforms"] is True
    assert {(r["case"], r["check"], r["status"]) for r in written["results"]} == {
        ("prompt_lookup", "greedy", "passed"),
        ("prompt_lookup", "budget", "passed"),
        ("chain", "greedy", "passed"),
    }
    html = (tmp_path / "r.html").read_text()
    assert "prompt_lookup" in html and "CONFORMS" in html
    assert "<script" not in html and "http" not in html


def test_the_command_fails_with_what_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from specplug import verify

    monkeypatch.setattr(verify, "_residual", lambda p, q, token: p)
    status = main(["conformance", "--plugin", "model", "--adapter", "toy", "--check", "law-exact", "--quiet"])
    shown = capsys.readouterr().out
    assert status == 1
    assert "DOES NOT CONFORM" in shown and "drafter 'model' in toy, check 'law-exact'" in shown


def test_a_name_that_is_unknown_is_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["conformance", "--plugin", "modle"]) == 2
    assert "Did you mean 'model'" in capsys.readouterr().err


def test_the_list_runs_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["conformance", "--list", "--check", "cache"]) == 0
    shown = capsys.readouterr().out
    assert "cache: after every round" in shown and "drafter prompt_lookup" in shown and "greedy:" not in shown


def test_the_page_marks_failures_and_escapes_what_it_quotes() -> None:
    def angry(trial: Any) -> None:
        raise Failure("<b>no</b>", prompt=[1, 2])

    chosen = one(made(angry), MODEL)
    html = page(report(chosen, chosen.run()))
    assert "DOES NOT CONFORM" in html and "&lt;b&gt;no&lt;/b&gt;" in html and "<b>no</b>" not in html


# --- from the wheel, outside a checkout

STRANGER = {
    "pyproject.toml": """
        [build-system]
        requires = ["hatchling"]
        build-backend = "hatchling.build"

        [project]
        name = "specplug-again"
        version = "1.0"

        [project.entry-points.specplug]
        again = "specplug_again"
    """,
    "specplug_again.py": """
        import specplug


        class Again(specplug.Drafter):
            \"\"\"Proposes the newest token again.\"\"\"

            def draft(self, request):
                length = min(2, request.shape.depth)
                return specplug.chain_trees(request.batch.roots, request.batch.roots[:, None].repeat(1, length))


        class Deaf(specplug.KVPolicy):
            \"\"\"Says that it reads two positions, and reads three.\"\"\"

            budget = 2

            def select(self, lengths):
                return specplug.KVSelection(lengths.new_zeros(1, 1, 1, 0), 3)


        @specplug.hookimpl
        def specplug_register_drafters(register):
            register("again", Again)


        @specplug.hookimpl
        def specplug_conformance_cases():
            from specplug_conformance import Case

            return [Case("deaf", "kv_policy", Deaf, {"budget": "it miscounts"})]
    """,
}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """specplug from its wheel and a stranger's package, in a folder of their own."""
    pytest.importorskip("hatchling")
    folder, wheels, target = (tmp_path_factory.mktemp(name) for name in ("again", "wheels", "target"))
    for name, text in STRANGER.items():
        (folder / name).write_text(textwrap.dedent(text).lstrip())
    offline = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    pip([*("wheel", str(ROOT), "--wheel-dir", str(wheels)), *offline])
    [wheel] = wheels.glob("specplug-*.whl")
    pip(["install", "--target", str(target), str(wheel), str(folder), *offline])
    return target


def pip(arguments: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", "pip", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def outside(installed: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, check=False, env=environment, cwd=installed
    )


def test_a_strangers_plugin_is_checked_with_the_installed_suite(installed: Path) -> None:
    where = outside(installed, "-c", "import specplug, specplug_conformance as c; print(specplug.__file__, c.__file__)")
    assert all(path.startswith(str(installed)) for path in where.stdout.split()), where.stderr
    few = ["--adapter", "toy", "--check", "greedy", "law-exact", "budget", "--effort", "quick", "--quiet"]
    done = outside(installed, "-m", "specplug.cli", "conformance", "--plugin", "again", "deaf", *few)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "drafter again" in done.stdout and "ok ok xf" in done.stdout
    assert "CONFORMS: 5 passed, 1 failed as expected" in done.stdout


def test_pytest_is_another_door(installed: Path) -> None:
    door = ["-m", "pytest", "-p", "specplug_conformance.pytest_plugin", "-q", "-rA", "-p", "no:cacheprovider"]
    few = ["--specplug-adapter=toy", "--specplug-check=greedy", "--specplug-check=budget"]
    names = ["--specplug-plugin=again", "--specplug-plugin=deaf"]
    done = outside(installed, *door, *few, *names, "--pyargs", "specplug_conformance")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed, 1 xfailed" in done.stdout
    assert "drafter:again-toy-greedy" in done.stdout
    unknown = outside(installed, *door, "--specplug-plugin=agian", "--pyargs", "specplug_conformance")
    assert unknown.returncode != 0 and "Did you mean 'again'" in unknown.stdout + unknown.stderr
