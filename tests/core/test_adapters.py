import contextlib
import sys
import types

import pytest

import specplug
from specplug import adapters
from specplug.errors import OptionError
from specplug.plugins import Plugin, plugins


class Fake:
    """An adapter of a framework whose models are dictionaries."""

    trigger = "specplug_made_up_framework"
    installed = 0

    def install(self):
        type(self).installed += 1

    def accepts(self, model):
        return isinstance(model, dict)

    def attach(self, model, speculator):
        before = model.get("speculator")
        model["speculator"] = speculator
        return before

    def detach(self, model, before):
        model["speculator"] = before


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setitem(plugins()._tables["adapters"], "fake", Plugin("adapters", "fake", Fake, "test"))
    monkeypatch.setattr(Fake, "installed", 0)


@pytest.mark.usefixtures("fake")
def test_attach_for_good_and_detach_twice():
    model, spec = {}, specplug.Speculator()
    attachment = specplug.attach(model, spec)
    assert model["speculator"] is spec is attachment.speculator
    attachment.detach()
    attachment.detach()
    assert model["speculator"] is None
    assert Fake.installed == 1


@pytest.mark.usefixtures("fake")
def test_attach_for_a_block_also_when_it_fails():
    model = {"speculator": "before"}
    with contextlib.suppress(RuntimeError), specplug.attach(model) as spec:
        assert model["speculator"] is spec
        assert isinstance(spec, specplug.Speculator)
        raise RuntimeError
    assert model["speculator"] == "before"


@pytest.mark.usefixtures("fake")
def test_nested_attachments_unwind_in_order():
    model = {}
    with specplug.attach(model) as outer:
        with specplug.attach(model) as inner:
            assert model["speculator"] is inner
        assert model["speculator"] is outer


@pytest.mark.usefixtures("fake")
def test_a_model_that_nobody_knows():
    with pytest.raises(OptionError, match="No installed adapter can attach to int; installed adapters: .*fake"):
        specplug.attach(3)


@pytest.mark.parametrize("first", ["framework", "specplug"])
def test_installed_whichever_is_imported_first(monkeypatch, tmp_path, first):
    name = f"specplug_made_up_{first}"
    (tmp_path / f"{name}.py").write_text("value = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    installed = []
    adapter = types.SimpleNamespace(trigger=name, install=lambda: installed.append(sys.modules[name].value))
    if first == "framework":
        __import__(name)
    adapters._install_with(adapter)
    adapters._install_with(adapter)  # once is enough
    if first == "specplug":
        assert installed == []
        __import__(name)
    assert installed == [1]


def test_an_adapter_that_fails_to_load_does_not_take_the_core_along(monkeypatch, caplog):
    class Broken:
        name, dist = "hf", types.SimpleNamespace(name="specplug")

        def load(self):
            raise ImportError("no such framework")

    monkeypatch.setattr(adapters.importlib.metadata, "entry_points", lambda group: [Broken()])
    adapters.install_own()
    assert "no such framework" in caplog.text
