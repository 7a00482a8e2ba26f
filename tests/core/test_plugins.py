import importlib.metadata
import inspect
import json
import logging
import os
import subprocess
import sys
import textwrap
import threading
import types

import pluggy
import pytest

import specplug
from specplug import hookspecs, plugins
from specplug.cli import main
from specplug.errors import PluginLoadError, UnknownNameError
from specplug.plugins import KINDS, Plugins


def module(**hooks):
    made = types.ModuleType("stranger")
    for name, function in hooks.items():
        setattr(made, name, function)
    return made


def registering(kind, *names):
    def hook(register):
        for name in names:
            register(name, object)

    hook.__name__ = f"specplug_register_{kind}"
    return specplug.hookimpl(hook)


def specs():
    return {name: value for name, value in vars(hookspecs).items() if name.startswith("specplug_")}


def test_built_ins_are_registered_through_the_same_hooks():
    known = Plugins(load_entry_points=False)
    assert known.names("drafters") == [
        *("layer_skip", "lookahead", "merged", "mlp_speculator", "model", "none", "prompt_lookup", "retrieval_corpus"),
        *("self", "suffix"),
    ]
    assert known.names("kv_policies") == ["full", "kvpress", "lambda", "retrieval", "snapkv", "squeezed", "streaming"]
    assert known.names("trees") == ["chain", "dynamic", "kary", "sequoia"]
    assert known.names("controllers") == ["auto", "batch_table", "fixed", "goodput", "slo"]
    assert {plugin.source for plugin in known.all()} == {"specplug"}


def test_a_stranger_is_found_by_name():
    known = Plugins(load_entry_points=False)
    known.register(module(specplug_register_trees=registering("trees", "bush")), "stranger 1.0")
    assert known.get("trees", "bush").source == "stranger 1.0"
    assert known.get("trees", "bush").factory is object


def test_a_hook_under_another_function_name():
    known = Plugins(load_entry_points=False)

    @specplug.hookimpl(specname="specplug_register_trees")
    def grow(register):
        register("bush", object)

    known.register(module(grow=grow), "stranger")
    assert "bush" in known.names("trees")


@pytest.mark.parametrize(
    ("kind", "asked", "said"),
    [
        (
            "drafters",
            "promt_lookup",
            "Unknown drafter 'promt_lookup'. Did you mean 'prompt_lookup'? Known: layer_skip, lookahead",
        ),
        ("kv_policies", "streming", "Unknown KV policy 'streming'. Did you mean 'streaming'?"),
        ("trees", "zzz", "Unknown tree 'zzz'. Known: chain, dynamic, kary, sequoia."),
        ("kernels", "triton", "Unknown kernel 'triton'. Known: none."),
    ],
)
def test_an_unknown_name_lists_the_nearest_and_all(kind, asked, said):
    with pytest.raises(UnknownNameError) as caught:
        Plugins(load_entry_points=False).get(kind, asked)
    assert str(caught.value).startswith(said)


def test_a_misspelt_hook_is_an_error_and_leaves_nothing_behind():
    known = Plugins(load_entry_points=False)

    @specplug.hookimpl
    def specplug_register_drafter(register):
        register("lost", object)

    broken = module(
        specplug_register_drafter=specplug_register_drafter, specplug_register_trees=registering("trees", "bush")
    )
    with pytest.raises(pluggy.PluginValidationError, match="specplug_register_drafter"):
        known.register(broken, "stranger")
    assert "bush" not in known.names("trees")
    known.register(module(specplug_register_trees=registering("trees", "bush")), "another")


def test_a_hook_with_a_wrong_argument_leaves_nothing_behind():
    known = Plugins(load_entry_points=False)

    @specplug.hookimpl
    def specplug_register_trees(registry):
        raise AssertionError

    with pytest.raises(pluggy.PluginValidationError, match="registry"):
        known.register(module(specplug_register_trees=specplug_register_trees), "stranger")
    assert not known.manager.has_plugin("stranger")


def test_a_forgotten_decorator_is_an_error():
    def specplug_register_trees(register):
        raise AssertionError

    with pytest.raises(PluginLoadError, match="specplug_register_trees lacks the decorator @specplug.hookimpl"):
        Plugins(load_entry_points=False).register(module(specplug_register_trees=specplug_register_trees), "stranger")


def test_a_taken_name_is_an_error_and_takes_the_whole_plugin_back():
    known = Plugins(load_entry_points=False)
    with pytest.raises(PluginLoadError, match="the name 'chain' among trees is taken by specplug"):
        known.register(module(specplug_register_trees=registering("trees", "bush", "chain")), "stranger")
    assert known.names("trees") == ["chain", "dynamic", "kary", "sequoia"]
    assert known.get("trees", "chain").source == "specplug"


def test_the_same_plugin_twice():
    known, stranger = Plugins(load_entry_points=False), module(specplug_register_trees=registering("trees", "bush"))
    known.register(stranger, "stranger")
    with pytest.raises(PluginLoadError, match="registered already"):
        known.register(stranger, "stranger again")
    assert "bush" in known.names("trees")


class Point:
    """A stand-in for an entry point."""

    dist = None

    def __init__(self, name, result):
        self.name, self.value, self.result = name, f"{name}_package", result

    def load(self):
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


def loaded_with(monkeypatch, *points):
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: list(points))
    return Plugins()


def test_a_failing_entry_point_is_raised_only_when_asked_for(monkeypatch, caplog):
    good = Point("good", module(specplug_register_trees=registering("trees", "bush")))
    with caplog.at_level(logging.WARNING):
        known = loaded_with(monkeypatch, Point("bad", ImportError("no module named flux")), good)
    assert "bad" in caplog.text
    assert known.get("trees", "bush").source == "good_package"
    assert known.get("drafters", "self")
    with pytest.raises(PluginLoadError, match="'bad' failed to load: bad_package: ImportError: no module named flux"):
        known.get("drafters", "bad")
    with pytest.raises(PluginLoadError, match="Unknown drafter 'other'.*failed to load: bad: .*flux"):
        known.get("drafters", "other")


def test_two_failures_of_one_name_are_both_recorded(monkeypatch):
    first, second = Point("bad", ImportError("one")), Point("bad", ImportError("two"))
    second.value = "other_package"
    known = loaded_with(monkeypatch, first, second)
    assert sorted(known.failed) == ["bad", "other_package"]


def test_the_same_entry_point_found_twice(monkeypatch):
    point = Point("good", module(specplug_register_trees=registering("trees", "bush")))
    known = loaded_with(monkeypatch, point, point)
    assert not known.failed


def test_a_plugin_that_asks_for_plugins_while_it_loads_is_told_so(monkeypatch):
    class Eager(Point):
        def load(self):
            specplug.Speculator(drafter="self")

    plugins._loaded.cache_clear()
    try:
        monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [Eager("eager", None)])
        assert "while it was being loaded" in plugins.plugins().failed["eager"]
    finally:
        plugins._loaded.cache_clear()


def test_plugins_are_loaded_once_by_many_threads():
    plugins._loaded.cache_clear()
    found = []
    threads = [threading.Thread(target=lambda: found.append(plugins.plugins())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(one) for one in found}) == 1


def test_nobody_pays_for_an_unheard_round(monkeypatch):
    assert plugins.round_listeners() is None
    heard = []

    @specplug.hookimpl
    def specplug_round_finished(event):
        heard.append(event)

    listener = module(specplug_round_finished=specplug_round_finished)
    plugins.plugins().register(listener, "listener")
    try:
        plugins.round_listeners()(event="a round")
    finally:
        plugins.plugins().manager.unregister(listener)
    assert heard == ["a round"]


# --- every hook is documented, and tested here by name ------------------------------------------------------------


def test_every_kind_has_its_hook():
    assert {f"specplug_register_{kind}" for kind in KINDS} <= set(specs())


@pytest.mark.parametrize("name", sorted(specs()))
def test_every_hook_has_a_docstring_and_annotations(name):
    hook = specs()[name]
    assert (hook.__doc__ or "").strip().endswith(".")
    assert "\n" not in hook.__doc__
    assert "return" in inspect.get_annotations(hook)


@pytest.mark.parametrize("name", sorted(specs()))
def test_every_hook_reaches_an_implementation(name):
    known, called = Plugins(load_entry_points=False), []
    arguments = list(inspect.signature(specs()[name]).parameters)
    scope = {"called": called}
    exec(f"def {name}({', '.join(arguments)}):\n    called.append({name!r})\n    return ()", scope)
    known.register(module(**{name: specplug.hookimpl(scope[name])}), "stranger")
    if not called:
        getattr(known.manager.hook, name)(**dict.fromkeys(arguments))
    assert called == [name]


# --- a third-party package, built and installed -------------------------------------------------------------------

PACKAGE = {
    "pyproject.toml": """
        [build-system]
        requires = ["hatchling"]
        build-backend = "hatchling.build"

        [project]
        name = "specplug-echo"
        version = "3.1"

        [project.entry-points.specplug]
        echo = "specplug_echo"
    """,
    "specplug_echo.py": """
        from dataclasses import dataclass

        import torch

        import specplug


        @dataclass
        class Echo(specplug.Drafter):
            \"\"\"Proposes the newest token again and again.\"\"\"

            times: int = 2

            def draft(self, request):
                length = min(self.times, request.shape.depth)
                tokens = request.batch.roots[:, None].repeat(1, length)
                return specplug.chain_trees(request.batch.roots, tokens)


        @specplug.hookimpl
        def specplug_register_drafters(register):
            register("echo", Echo)
    """,
}

SCRIPT = """
    import sys
    sys.path.insert(0, sys.argv[1])
    import torch
    import specplug
    from core.tools import TableHost, plain_greedy, table
    from core.test_round import generate

    target = table(4, 0)
    host = TableHost(target, target, [[1, 1], [0, 2]])
    spec = specplug.Speculator(drafter="echo:times=3", tree="chain:length=5", controller="fixed")
    session = generate(host, spec)
    assert [host.result(row) for row in range(2)] == [plain_greedy(target, p, 16) for p in ([1, 1], [0, 2])]
    print(session.arms[0].label, session.stats.proposed)
"""


@pytest.fixture(scope="module")
def echo(tmp_path_factory):
    """The package, installed by pip without a network or a venv: hatchling comes with the development environment."""
    pytest.importorskip("hatchling")
    folder, target = tmp_path_factory.mktemp("echo"), tmp_path_factory.mktemp("installed")
    for name, text in PACKAGE.items():
        (folder / name).write_text(textwrap.dedent(text).lstrip())
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*pip, "--target", target, folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return target


def run(target, *command):
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    path = os.pathsep.join([str(target), os.path.dirname(here), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, check=False, env=environment, cwd=target
    )


def test_an_installed_package_is_used_by_name(echo):
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    done = run(echo, "-c", textwrap.dedent(SCRIPT), here)
    assert done.returncode == 0, done.stderr
    label, proposed = done.stdout.split()
    assert label == "Echo/chain:5"
    assert int(proposed) > 0


def test_the_command_lists_where_it_comes_from(echo, tmp_path):
    listed = tmp_path / "plugins.json"
    done = run(echo, "-m", "specplug.cli", "plugins", "--json", str(listed))
    rows = json.loads(listed.read_text())["plugins"]
    assert {
        "kind": "drafters",
        "name": "echo",
        "summary": "Proposes the newest token again and again.",
        "source": "specplug_echo (specplug-echo 3.1)",
    } in rows
    assert "specplug_echo (specplug-echo 3.1)" in done.stdout


def test_the_command_without_a_stranger(capsys):
    assert main(["plugins"]) in (0, 1)
    assert "prompt_lookup" in capsys.readouterr().out
