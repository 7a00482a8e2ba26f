"""The configuration's words: read from JSON, a file, a mapping or the environment; refused in one line."""

from __future__ import annotations

import json

import pytest

from specplug import OptionError, SpecplugError, UnsupportedError
from specplug.drafters import ModelDraft, SelfDraft
from specplug_sglang.config import VARIABLE, read_config, speculator_of
from specplug_sglang.versions import FIRST, LAST, check_version

WORDS = {"drafter": "self", "kv_policy": "streaming:sink=4,window=28", "tree": "sequoia:size=8,depth=3", "seed": 3}


@pytest.fixture(autouse=True)
def _nothing_in_the_environment(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)


def test_the_ways_in_are_equal(tmp_path, monkeypatch):
    path = tmp_path / "specplug.json"
    path.write_text(json.dumps(WORDS))
    assert read_config(json.dumps(WORDS)) == read_config(str(path)) == read_config(WORDS) == WORDS
    monkeypatch.setenv(VARIABLE, str(path))
    assert read_config(None) == WORDS
    assert read_config("{}") == {}  # what is given goes before the environment


def test_nothing_is_the_defaults():
    assert read_config(None) == {} and speculator_of({}).drafter == "auto"


def test_the_words_make_a_speculator():
    speculator = speculator_of(WORDS)
    (drafter,) = speculator.drafters
    assert isinstance(drafter, SelfDraft) and drafter.kv_policy.budget == 32
    assert (speculator.max_nodes, speculator.max_tokens, speculator.seed) == (9, 4, 3)


def test_the_servers_draft_model_is_the_draft():
    (drafter,) = speculator_of({"drafter": "model"}, "/some/draft").drafters
    assert isinstance(drafter, ModelDraft) and drafter.model == "/some/draft"
    with pytest.raises(OptionError, match="Two draft models: 'a' in the configuration and 'b'"):
        speculator_of({"drafter": "model", "draft_model": "a"}, "b")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ('{"drafter": ', "--specplug-config: not valid JSON"),
        ("[1]", "neither a JSON object nor a file"),
        ("nowhere.json", "'nowhere.json' is neither a JSON object nor a file"),
        ({"draftr": "self"}, "Unknown word of --specplug-config 'draftr'. Did you mean 'drafter'?"),
        ({"kernel": "sdpa"}, "chosen with --attention-backend"),
        ({"seed": "1"}, "seed must be a whole number, got '1'"),
        ({"seed": True}, "seed must be a whole number, got True"),
        ({"tree": 4}, "tree must be a text, got 4"),
    ],
)
def test_bad_words_are_one_clear_error(given, message):
    with pytest.raises(SpecplugError, match=r".*".join(map(__import__("re").escape, [message]))):
        read_config(given)


def test_bad_values_are_the_cores_errors():
    with pytest.raises(SpecplugError, match="Unknown drafter 'slef'. Did you mean 'self'"):
        speculator_of({"drafter": "slef"})
    with pytest.raises(SpecplugError, match="needs a draft"):
        speculator_of({"drafter": "model"})


@pytest.mark.parametrize("version", [FIRST, LAST, "0.5.23.post1"])
def test_tested_versions_are_served(version):
    assert check_version(version) == version


@pytest.mark.parametrize("version", ["0.5.22", "0.5.24", "0.6.0", "1.0"])
def test_others_are_refused_with_both_versions(version):
    with pytest.raises(UnsupportedError, match=f"SGLang {version} is installed; this specplug serves SGLang 0.5.23. "):
        check_version(version)


def test_a_range_is_named_by_both_ends(monkeypatch):
    monkeypatch.setattr("specplug_sglang.versions.LAST", "0.5.25")
    assert check_version("0.5.24") == "0.5.24"
    with pytest.raises(UnsupportedError, match="this specplug serves SGLang 0.5.23 to 0.5.25. "):
        check_version("0.5.26")
