"""Where things live and what may import what, read from the files themselves."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# package -> what it may import besides the standard library and itself
ALLOWED = {
    "specplug": {"torch", "pluggy", "wrapt"},
    "kernels/specplug_kernels": {"torch", "triton", "flashinfer"},
    "conformance/specplug_conformance": {"torch", "specplug", "hypothesis", "scipy", "rich", "pytest", "transformers"},
}
# what a part of a package needs only when it is used: imported within functions, and nowhere else
LAZY = {"specplug": {"safetensors"}}
ADAPTERS = sorted(path.name for path in (ROOT / "adapters").glob("*/specplug_*") if path.is_dir())


def imported(path):
    """Top-level names that a file imports anywhere, function bodies included."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        yield from names_of(node)


def names_of(node):
    """Top-level names that a statement imports."""
    if isinstance(node, ast.Import):
        yield from (alias.name.partition(".")[0] for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and not node.level:
        yield node.module.partition(".")[0]


def files(package):
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("package", ALLOWED)
def test_a_package_imports_only_what_it_may(package):
    allowed = ALLOWED[package] | LAZY.get(package, set()) | set(sys.stdlib_module_names) | {Path(package).name}
    strays = {f"{path.relative_to(ROOT)}: {name}" for path in files(package) for name in imported(path)} - {
        f"{path.relative_to(ROOT)}: {name}" for path in files(package) for name in allowed
    }
    assert not strays


@pytest.mark.parametrize("package", LAZY)
def test_what_a_part_needs_is_imported_when_it_is_used(package):
    for path in files(package):
        eager = {name for node in ast.parse(path.read_text(), str(path)).body for name in names_of(node)}
        assert not eager & LAZY[package], path


def test_the_suite_needs_transformers_only_for_its_llamas():
    folder = ROOT / "conformance" / "specplug_conformance"
    users = {path.relative_to(folder).parts[0] for path in files(folder) if "transformers" in imported(path)}
    assert users == {"llama"}


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_adapters_never_import_each_other(adapter):
    folder = next((ROOT / "adapters").glob(f"*/{adapter}"))
    others = set(ADAPTERS) - {adapter}
    assert not {f"{path}: {name}" for path in folder.rglob("*.py") for name in imported(path) if name in others}


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_adapters_know_the_suite_only_where_they_are_its_subject(adapter):
    folder = next((ROOT / "adapters").glob(f"*/{adapter}"))
    users = {
        path.relative_to(folder).parts[0] for path in folder.rglob("*.py") if "specplug_conformance" in imported(path)
    }
    assert users <= {"conformance", "plugin.py"}


OUTER = ["adapters", "adapters/hf", "adapters/sglang", "kernels", "conformance"]


@pytest.mark.parametrize("folder", [folder for folder in OUTER if (ROOT / folder).exists()])
def test_outer_folders_are_no_packages(folder):
    """A root package called `kernels` shadows the one that transformers imports."""
    assert not (ROOT / folder / "__init__.py").exists()
    assert not list((ROOT / folder).glob("*.py"))


@pytest.mark.parametrize("path", files("specplug"), ids=lambda path: str(path.relative_to(ROOT)))
def test_core_files_are_safe_and_say_what_they_are(path):
    text = path.read_text()
    tree = ast.parse(text)
    assert ast.get_docstring(tree)
    assert len(text.splitlines()) <= 260
    called = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert not called & {"eval", "exec", "compile", "__import__"}
    assert not {"pickle", "marshal", "shelve"} & set(imported(path))
    assert not re.search(r"torch\.load|assistant.model|verifier.model", text)


def python(script):
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT).stdout


def test_import_specplug_loads_no_framework():
    loaded = python(
        "import sys, specplug; specplug.Speculator();"
        "print(*[m for m in ('transformers', 'sglang', 'flashinfer', 'triton', 'numpy.testing') if m in sys.modules])"
    ).split()
    # torch itself may load triton where it is installed
    assert not {"transformers", "sglang", "flashinfer"} & set(loaded)


def test_star_import_gives_the_public_names():
    assert python("from specplug import *; print(Speculator.__name__, attach.__name__)").split() == [
        "Speculator",
        "attach",
    ]


def test_the_version_is_one():
    import specplug

    assert re.fullmatch(r"\d+\.\d+\.\d+", specplug.__version__)
