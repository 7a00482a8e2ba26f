import pytest

import specplug.cli
from specplug.cli import by_adapter, main
from specplug.errors import OptionError
from specplug.plugins import Plugin, plugins


def command(monkeypatch, run):
    def add(subparsers):
        subparsers.add_parser("made-up").set_defaults(run=run)

    monkeypatch.setitem(plugins()._tables["commands"], "made-up", Plugin("commands", "made-up", add, "test"))


def test_a_plugins_command_runs_and_returns_its_status(monkeypatch):
    command(monkeypatch, lambda arguments: 3)
    assert main(["made-up"]) == 3


def test_our_errors_are_one_line(monkeypatch, capsys):
    def run(arguments):
        raise OptionError("this cannot be; do that")

    command(monkeypatch, run)
    assert main(["made-up"]) == 2
    assert capsys.readouterr().err == "specplug: this cannot be; do that\n"


def test_a_command_that_is_not_installed_says_which_extra_brings_it(monkeypatch, capsys):
    monkeypatch.setitem(specplug.cli.EXTRAS, "made-up", "flashinfer")
    assert main(["made-up"]) == 2
    assert "pip install 'specplug[flashinfer]'" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["no-such-command"]])
def test_nothing_or_nonsense_is_a_usage_error(arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (["bench", "--adapter", "sglang", "--json", "x"], ["bench-sglang", "--json", "x"]),
        (["bench", "--json", "x", "--adapter=sglang"], ["bench-sglang", "--json", "x"]),
        (["bench", "--adapter", "hf", "--batch", "2"], ["bench", "--batch", "2"]),
        (["bench", "--batch", "2"], ["bench", "--batch", "2"]),
        (["conformance", "--adapter", "toy"], ["conformance", "--adapter", "toy"]),
        ([], []),
    ],
)
def test_an_adapters_measurements_are_a_command_of_its_own(given, meant):
    assert by_adapter(given) == meant
