"""`make gpu`: parts that pass, fail, hang and collect nothing; what is kept, and that no process stays behind."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def everything() -> ModuleType:
    spec = importlib.util.spec_from_file_location("everything", ROOT / "tests" / "gpu" / "everything.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["everything"] = module  # where its dataclasses look for it
    spec.loader.exec_module(module)
    return module


def script(everything: ModuleType, name: str, text: str, weight: float = 1.0) -> object:
    return everything.Part(name, weight, ("-c", text), (("SPECPLUG_TEST_DEVICE", "{device}"),))


def test_every_part_is_run_and_its_result_kept(
    everything: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = "import os; print(os.environ['SPECPLUG_TEST_DEVICE'], os.environ['HF_HUB_OFFLINE'], '{out}', '{seconds}')"
    parts = [
        script(everything, "good", said),
        script(everything, "bad", "print('half way', flush=True); raise SystemExit(3)"),
        script(everything, "empty", "raise SystemExit(5)"),
        script(everything, "after", "open('{out}/after.json', 'w').write('1')"),
    ]
    outcomes = everything.run(parts, tmp_path, "toy", 400.0)
    assert [outcome.verdict for outcome in outcomes] == ["passed", "FAILED (3)", "NOTHING RUN", "passed"]
    assert (tmp_path / "good.log").read_text().split() == ["toy", "1", str(tmp_path), "90"]  # of 100 s, nine tenths
    assert (tmp_path / "bad.log").read_text() == "half way\n" and (tmp_path / "after.json").exists()
    summary = (tmp_path / "summary.txt").read_text()
    assert re.search(r"good +passed", summary) and re.search(r"bad +FAILED \(3\) .*half way", summary)
    assert str(tmp_path) in summary and "not run" not in summary
    assert "half way" in capsys.readouterr().out


def test_a_part_that_hangs_is_ended_with_all_it_started(
    everything: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(everything, "GRACE", 8.0)
    deaf = "for s in (signal.SIGINT, signal.SIGTERM): signal.signal(s, signal.SIG_IGN)"
    child = f"import signal, time\n{deaf}\ntime.sleep(600)"
    text = (
        "import subprocess, sys, time\n"
        f"started = subprocess.Popen([sys.executable, '-c', {child!r}])\n"
        "print(started.pid, flush=True)\n"
        "try: time.sleep(600)\n"
        "except KeyboardInterrupt: print('so far', flush=True); time.sleep(600)"
    )
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in the background of a shell
    try:
        outcome = everything.run_part(script(everything, "stuck", text), tmp_path, "cpu", 12.0, dict(os.environ))
    finally:
        signal.signal(signal.SIGINT, before)
    assert outcome.verdict == "OUT OF TIME" and not outcome.passed
    first, rest = (tmp_path / "stuck.log").read_text().split("\n", 1)
    assert rest == "so far\n"  # it was interrupted before it was ended
    assert any(_gone(int(first)) for _ in range(100))


def _gone(process: int) -> bool:
    """Ended, or dead and waiting for whoever adopted it."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    time.sleep(0.1)
    return state == "Z"


def test_the_summary_is_written_after_each_part(
    everything: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [script(everything, "first", "pass"), script(everything, "second", "pass")]
    real = everything.run_part

    def interrupted(part: object, *rest: object) -> object:
        if part is parts[1]:
            raise KeyboardInterrupt
        return real(part, *rest)

    monkeypatch.setattr(everything, "run_part", interrupted)
    with pytest.raises(KeyboardInterrupt):
        everything.run(parts, tmp_path, "cpu", 60.0)
    assert re.search(r"first +passed.*\nsecond +not run", (tmp_path / "summary.txt").read_text())


def test_the_metadata_is_that_of_an_installation(everything: ModuleType, tmp_path: Path) -> None:
    (found,) = importlib.metadata.distributions(path=[str(everything.write_metadata(tmp_path))])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {(group, *point) for group, points in project["entry-points"].items() for point in points.items()}
    assert {(point.group, point.name, point.value) for point in found.entry_points} == wanted
    assert found.metadata["Name"] == "specplug" and found.version == importlib.metadata.version("specplug")


def test_the_checkout_is_enough(everything: ModuleType, tmp_path: Path) -> None:
    """A Python in which specplug is not installed finds its packages and, by the metadata, its plugins."""
    packages = tmp_path / "packages"  # what such a Python has: everything but us
    packages.mkdir()
    for folder in {Path(p) for p in sys.path if p.endswith("site-packages")}:
        for item in folder.iterdir():
            if "specplug" not in item.name and item.suffix != ".pth" and not (packages / item.name).exists():
                (packages / item.name).symlink_to(item)
    asked = (
        "import specplug; from specplug.plugins import plugins; print(plugins().failed, plugins().names('commands'))"
    )
    variables = everything.environment(tmp_path, "cpu")
    variables["PYTHONPATH"] = os.pathsep.join(
        [p for p in variables["PYTHONPATH"].split(os.pathsep) if "site-packages" not in p] + [str(packages)]
    )
    run = subprocess.run(
        [sys.executable, "-S", "-c", asked], env=variables, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert run.stdout.startswith("{} ") and "'roofline'" in run.stdout and "'bench'" in run.stdout


@pytest.mark.parametrize("name", ["roofline", "kernels", "pair"])
def test_commands_have_the_options_that_parts_give_them(everything: ModuleType, tmp_path: Path, name: str) -> None:
    (part,) = everything.chosen(name)
    command = part.command(tmp_path, "cpu", 10.0)
    run = subprocess.run(
        [*command, "--help"],
        cwd=ROOT,
        env=everything.environment(tmp_path, "cpu"),
        capture_output=True,
        text=True,
        check=True,
    )
    missing = [word for word in part.arguments if word.startswith("--") and word not in run.stdout]
    assert not missing


def test_tests_that_parts_name_exist(everything: ModuleType) -> None:
    named = [ROOT / word for part in everything.PARTS for word in part.arguments if word.startswith("tests/")]
    assert len(named) == 2 and all(path.exists() for path in named)


@pytest.mark.parametrize(
    ("arguments", "message"), [(["--only", "nonsense"], "no part nonsense"), (["--only", "pair"], "sees no GPU")]
)
def test_without_a_gpu_it_says_so(
    everything: ModuleType,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(everything, "sees_gpu", lambda: False)
    try:
        assert everything.main(arguments) == 2
        said = capsys.readouterr().err
    except SystemExit as end:
        said = str(end)
    assert message in said


def test_packages_that_are_missing_are_named(
    everything: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(everything, "NEEDED", ("torch", "no_such_package"))
    assert everything.main([]) == 2
    assert "lacks no_such_package" in capsys.readouterr().err
