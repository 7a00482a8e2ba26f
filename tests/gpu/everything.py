"""`make gpu`: everything that needs a GPU, one part after another within a stated time; what each part gives is kept.

Runs with whatever Python it is started with, installs nothing and needs no network: the packages are imported from this
checkout, and a folder of metadata beside the results stands for an installation, since plugins are found by their entry
points. Needs the standard library alone; the parts need what docs/gpu.md lists.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (".", "adapters/hf", "adapters/sglang", "kernels", "conformance")  # folders that hold one, for PYTHONPATH
NEEDED = (
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "numpy",
    "pluggy",
    "wrapt",
    "rich",
    "tqdm",
    "pytest",
    "hypothesis",
    "scipy",
)
SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONUNBUFFERED": "1",
}
GRACE = 5.0  # seconds between interrupting a part, asking it to end, and ending it
TAIL = 25  # lines of a part's output that are shown; all of it is in its log
NOTHING_COLLECTED = 5  # pytest's status


@dataclass(frozen=True, slots=True)
class Part:
    """A command. `weight`: its share of the time among the parts that are left; `{out}`, `{device}` and `{seconds}` in it are
    filled in."""

    name: str
    weight: float
    arguments: tuple[str, ...]
    settings: tuple[tuple[str, str], ...] = ()

    def command(self, out: Path, device: str, seconds: float) -> list[str]:
        """The line to run, told to end a little before its time."""
        told = str(max(1, round(0.9 * seconds)))
        return [sys.executable, *(a.format(out=out, device=device, seconds=told) for a in self.arguments)]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a part ended. `said`: the last line of its output."""

    name: str
    verdict: str
    seconds: float
    said: str

    @property
    def passed(self) -> bool:
        return self.verdict == "passed"


# A line for each test as it ends; several at once where pytest-xdist is there, for those that are slow on the host.
PYTEST = ("-m", "pytest", "-p", "no:cacheprovider", "-v")
ABREAST = ("-n", "4") if importlib.util.find_spec("xdist") is not None else ()
PARTS = (
    Part("kernel-tests", 110, (*PYTEST, "-m", "gpu", "tests/kernels")),
    Part("adapter-tests", 80, (*PYTEST, *ABREAST, "tests/hf/test_on_device.py"), (("SPECPLUG_TEST_DEVICE", "{device}"),)),
    Part(
        "roofline", 200,
        ("-m", "specplug.cli", "roofline", "--device", "{device}", "--budget-seconds", "{seconds}",
         "--json", "{out}/roofline.json"),
    ),
    Part(
        "kernels", 90,
        ("-m", "specplug_kernels.bench", "--device", "{device}", "--preset", "llama-3.1-8b", "--json", "{out}/kernels.json"),
    ),
    Part(
        "pair", 60,
        ("-m", "specplug.cli", "bench", "--device", "{device}", "--dtype", "bfloat16", "--batch", "1,4,32", "--prompts", "2",
         "--setups", "plain,none,model,lookup,auto", "--quiet", "--json", "{out}/pair.json"),
    ),
)  # fmt: skip


def run(parts: Sequence[Part], out: Path, device: str, seconds: float) -> list[Outcome]:
    """Every part in turn, each with its share of what is left of `seconds`; the summary is rewritten after each."""
    end, outcomes = perf_counter() + seconds, list[Outcome]()
    variables = environment(out, device)
    for number, part in enumerate(parts):
        share = part.weight / sum(other.weight for other in parts[number:])
        allowed = max(0.0, end - perf_counter()) * share
        print(f"\n=== {part.name}, up to {allowed:.0f} s", flush=True)
        outcomes.append(run_part(part, out, device, allowed, variables))
        print(_tail(out / f"{part.name}.log"), flush=True)
        (out / "summary.txt").write_text(summary(outcomes, parts, out) + "\n", encoding="utf-8")
    return outcomes


def run_part(part: Part, out: Path, device: str, seconds: float, variables: Mapping[str, str]) -> Outcome:
    """One part, its output in `out`; it is ended with all it started when its time is over."""
    start, log = perf_counter(), out / f"{part.name}.log"
    own = {name: value.format(device=device) for name, value in part.settings}
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            part.command(out, device, seconds),
            cwd=ROOT, env={**variables, **own}, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            preexec_fn=_interruptible,  # noqa: PLW1509  (no other thread runs here)
        )  # fmt: skip
        try:
            verdict = _verdict(process.wait(seconds))
        except subprocess.TimeoutExpired:
            verdict = "OUT OF TIME"
        finally:
            _end(process)
    return Outcome(part.name, verdict, perf_counter() - start, _last_line(log))


def _interruptible() -> None:
    """What a shell starts in its background ignores interrupts, and so would all parts: none could say how far it came."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _verdict(status: int) -> str:
    if status == NOTHING_COLLECTED:
        return "NOTHING RUN"
    return "passed" if status == 0 else f"FAILED ({status})"


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the process and all that it started: they are a group of their own. Interrupted, pytest still says what failed."""
    for ending in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, ending)
        except ProcessLookupError:
            return
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            continue


def summary(outcomes: Sequence[Outcome], parts: Sequence[Part], out: Path) -> str:
    """Which part passed, which failed, which has not run, and where everything lies."""
    lines = [f"{o.name:14} {o.verdict:12} {o.seconds:5.0f} s  {o.said}" for o in outcomes]
    lines += [f"{part.name:14} not run" for part in parts[len(outcomes) :]]
    return "\n".join([*lines, f"logs and JSON: {out}"])


def environment(out: Path, device: str) -> dict[str, str]:
    """The parts' environment: packages from this checkout, metadata in `out`, no network."""
    folders = [write_metadata(out / "site"), *(ROOT / folder for folder in PACKAGES)]
    given = [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
    path = os.pathsep.join([*map(str, folders), *given])
    return {**os.environ, **SETTINGS, "PYTHONPATH": path}


def write_metadata(folder: Path) -> Path:
    """What an installation would leave for `importlib.metadata`: name, version, entry points. Returns `folder`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = re.search(r'__version__ = "(.+)"', (ROOT / "specplug" / "__init__.py").read_text(encoding="utf-8"))
    assert found is not None
    place = folder / f"specplug-{found[1]}.dist-info"
    place.mkdir(parents=True, exist_ok=True)
    (place / "METADATA").write_text(f"Metadata-Version: 2.1\nName: specplug\nVersion: {found[1]}\n", encoding="utf-8")
    groups = [
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in points.items())
        for group, points in project["entry-points"].items()
    ]
    (place / "entry_points.txt").write_text("\n".join(groups), encoding="utf-8")
    return folder


def missing() -> list[str]:
    """Packages that the parts need and that this Python lacks."""
    return [name for name in NEEDED if importlib.util.find_spec(name) is None]


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL:])


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1][:120] if lines else ""


def chosen(names: str | None) -> list[Part]:
    """The named parts, in their usual order; all if none are named."""
    wanted = [part.name for part in PARTS] if names is None else names.split(",")
    unknown = set(wanted) - {part.name for part in PARTS}
    if unknown:
        raise SystemExit(f"no part {', '.join(sorted(unknown))}; parts: {', '.join(part.name for part in PARTS)}")
    return [part for part in PARTS if part.name in wanted]


def sees_gpu() -> bool:
    """Whether this Python's torch sees one; asked in another process, which gives the GPU back."""
    asked = "import torch, sys; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", asked], check=False, capture_output=True).returncode == 0


def main(arguments: Sequence[str] | None = None) -> int:
    """0 if every part passed, 1 if one did not, 2 if nothing could be run."""
    parser = argparse.ArgumentParser(
        prog="make gpu", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu", help="folder of the results (build/gpu)")
    parser.add_argument("--seconds", type=float, default=540.0, help="for everything (540)")
    parser.add_argument("--only", metavar="PART,PART", help=f"of {', '.join(part.name for part in PARTS)}")
    parser.add_argument(
        "--device", default="cuda", help="cuda; cpu tries the machinery out, and the parts that a CPU can run"
    )
    given = parser.parse_args(arguments)
    parts, lacking = chosen(given.only), missing()
    if lacking:
        print(f"{sys.executable} lacks {', '.join(lacking)}: PYTHON=... chooses another interpreter.", file=sys.stderr)
        return 2
    if given.device.startswith("cuda") and not sees_gpu():
        print(f"torch of {sys.executable} sees no GPU: there is nothing to run here.", file=sys.stderr)
        return 2
    out = given.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    outcomes = run(parts, out, given.device, given.seconds)
    print("\n" + summary(outcomes, parts, out))
    return int(not all(outcome.passed for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
