"""The bridge to kvpress: against stand-ins wherever the tests run, against the package itself where it is installed."""

import importlib.util
import os
import subprocess
import sys
from dataclasses import dataclass
from types import ModuleType

import pytest
import torch

from specplug.errors import OptionError, UnknownNameError, UnsupportedError
from specplug.kv_policies.kvpress import KVPress

from .layers import Layer, check_best, check_choice, chosen_sets


@dataclass
class StandInPress:
    """A stand-in for kvpress.ScorerPress: its signature, and nothing else of it."""

    compression_ratio: float = 0.0

    def score(self, module, hidden_states, keys, values, attentions, kwargs):
        raise NotImplementedError


@dataclass
class StandInNorm(StandInPress):
    """Short keys first, as KnormPress."""

    def score(self, module, hidden_states, keys, values, attentions, kwargs):
        return -keys.norm(dim=-1)


@dataclass
class StandInDifference(StandInPress):
    """Keys unlike the mean first, as KeyDiffPress: a score that hangs on all other positions, and on the values."""

    def score(self, module, hidden_states, keys, values, attentions, kwargs):
        both = torch.cat([keys, values], dim=3)
        return -torch.nn.functional.cosine_similarity(both, both.mean(2, keepdim=True), dim=3)


@dataclass
class StandInStreaming(StandInPress):
    """What is to go are positions behind the first two, as StreamingLLMPress: a score that hangs on how much that is."""

    def score(self, module, hidden_states, keys, values, attentions, kwargs):
        scores = torch.ones_like(keys[..., 0])
        scores[..., 2 : 2 + round(keys.shape[2] * self.compression_ratio)] = 0
        return scores


class StandInRandom(StandInPress):
    """At random from the framework's generator, which it seeds, as RandomPress does."""

    def score(self, module, hidden_states, keys, values, attentions, kwargs):
        torch.manual_seed(5)
        return torch.rand(keys.shape[:3])


class StandInUncertain(StandInPress):
    """No number for every other position."""

    def score(self, module, hidden_states, keys, values, attentions, kwargs):
        scores = keys.norm(dim=-1)
        scores[..., ::2] = torch.nan
        return scores


class LooksAtModule(StandInPress):
    """As SnapKVPress."""

    def score(self, module, hidden_states, keys, values, attentions, kwargs):
        return keys.norm(dim=-1) * module.config.num_attention_heads


class LooksAtHiddenStates(StandInPress):
    """As ExpectedAttentionPress."""

    def score(self, module, hidden_states, keys, values, attentions, kwargs):
        return torch.ones_like(keys[..., 0]) * hidden_states.shape[1]


class LooksAtArguments(StandInPress):
    """As presses that rotate something."""

    def score(self, module, hidden_states, keys, values, attentions, kwargs):
        return keys.norm(dim=-1) * kwargs["position_embeddings"][0]


class LooksAtAttention(StandInPress):
    """As ObservedAttentionPress."""

    def score(self, module, hidden_states, keys, values, attentions, kwargs):
        assert attentions is not None, "Set output_attentions=True"


class GivesOneScore(StandInPress):
    def score(self, module, hidden_states, keys, values, attentions, kwargs):
        return keys.norm(dim=-1)[:, :1]


@pytest.fixture
def stand_in(monkeypatch):
    """A package of that name, already imported, made of the stand-ins."""
    package = ModuleType("kvpress")
    package.ScorerPress, package.KnormPress, package.NoScorer = StandInPress, StandInNorm, dict
    monkeypatch.setitem(sys.modules, "kvpress", package)
    return package


@pytest.mark.parametrize("press", [StandInNorm(), StandInDifference()])
def test_it_reads_what_the_scorer_likes_best(press):
    policy, lengths = KVPress(press, budget=20, window=8), [64, 37, 12, 5]
    layer = Layer.random(rows=4)
    context = layer.at(lengths, policy.window)
    chosen = policy.open().choose(context)
    check_choice(chosen, context, policy.anchors)
    for row, heads in enumerate(chosen_sets(chosen)):
        keys, values = layer.keys[row : row + 1, :, : lengths[row]], layer.values[row : row + 1, :, : lengths[row]]
        scores = press.score(None, None, keys, values, None, {})[0]
        for head, found in enumerate(heads):
            check_best(found, scores[head, : max(0, lengths[row] - 8)].tolist(), policy.anchors)


def test_a_scorer_knows_how_much_is_to_go():
    press = StandInStreaming(compression_ratio=0.3)
    chosen = KVPress(press, budget=20, window=8).open().choose(Layer.random(rows=2).at([64, 37], 8))
    assert chosen_sets(chosen) == [[{0, 1, *range(46, 56)}] * 2, [{0, 1, *range(19, 29)}] * 2]
    assert press.compression_ratio == 0.3  # the user's own object is left alone


def test_a_name_is_a_scorer_of_the_package(stand_in):
    context = Layer.random().at([64, 37, 12], 8)
    named, given = KVPress("KnormPress", 20, 8), KVPress(StandInNorm(), 20, 8)
    assert torch.equal(named.open().choose(context), given.open().choose(context))
    assert (named.key, given.key) == ("kvpress KnormPress 20", "kvpress StandInNorm 20")


def test_rows_are_scored_by_themselves():
    chooser, layer = KVPress(StandInDifference(), 20, 8).open(), Layer.random()
    together = chooser.choose(layer.at([64, 37, 12], 8))
    chooser.keep_rows([1])
    assert torch.equal(chooser.choose(layer.at([37], 8, rows=[1])), together[1:2])


def test_where_nothing_may_be_chosen_there_is_nothing():
    chosen = KVPress(StandInNorm(), 20, 8).open().choose(Layer.random(rows=3).at([0, 8, 10], 8))
    assert chosen_sets(chosen) == [[set(), set()], [set(), set()], [{0, 1}, {0, 1}]]


def test_what_is_no_number_comes_last():
    context = Layer.random(rows=2).at([40, 18], 8)
    chosen = KVPress(StandInUncertain(), 20, 8).open().choose(context)
    check_choice(chosen, context, 12)
    for head in chosen[0].tolist():
        assert all(position % 2 for position in head)
    assert chosen_sets(chosen)[1] == [set(range(10))] * 2  # all there are


def test_the_frameworks_generator_is_left_as_it_was():
    context, before = Layer.random().at([64, 37, 12], 8), torch.get_rng_state()
    policy = KVPress(StandInRandom(), 20, 8)
    check_choice(policy.open().choose(context), context, 12)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("press", "message"),
    [
        (LooksAtModule(), "LooksAtModule looks at the attention module, .* 'snapkv'"),
        (LooksAtHiddenStates(), "LooksAtHiddenStates looks at hidden states"),
        (LooksAtArguments(), "LooksAtArguments looks at the arguments of the forward pass"),
        (LooksAtAttention(), "LooksAtAttention cannot score .*Set output_attentions=True"),
        (StandInPress(), "StandInPress cannot score .*NotImplementedError"),
        (GivesOneScore(), r"GivesOneScore gave \[1, 1, 512\] for keys \[1, 2, 512, 8\]"),
    ],
)
def test_a_scorer_that_needs_more_is_refused_with_the_reason(press, message):
    with pytest.raises(UnsupportedError, match=message):
        KVPress(press)


def test_names_that_are_no_scorers(stand_in):
    with pytest.raises(UnknownNameError, match="'KnormPres'.*Did you mean 'KnormPress'"):
        KVPress("KnormPres")
    with pytest.raises(UnknownNameError, match="'NoScorer'"):
        KVPress("NoScorer")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "window=0 must be at least 1"),
        ({"budget": 64}, "budget=64 must exceed window=64"),
        ({"press": 5}, "press=5 is neither the name"),
    ],
)
def test_impossible_options(options, message):
    with pytest.raises(OptionError, match=message):
        KVPress(**{"press": StandInNorm(), **options})


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "kvpress", None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, "kvpress")
    monkeypatch.setattr("specplug.kv_policies.kvpress.import_module", _missing)
    with pytest.raises(UnsupportedError, match="needs NVIDIA's package .*pip install --no-deps kvpress"):
        KVPress("KnormPress")


def _missing(name):
    raise ModuleNotFoundError(f"No module named {name!r}")


PATCHING = """
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
for name, function in ALL_ATTENTION_FUNCTIONS.items():
    ALL_ATTENTION_FUNCTIONS[name] = lambda *given: function(*given)
class ScorerPress:
    def __init__(self, compression_ratio): pass
class KnormPress(ScorerPress):
    def score(self, module, hidden_states, keys, values, attentions, kwargs):
        return -keys.norm(dim=-1)
"""
UNTOUCHED = """
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
before = dict(ALL_ATTENTION_FUNCTIONS)
from specplug.kv_policies.kvpress import KVPress
KVPress("KnormPress")
import kvpress
assert dict(ALL_ATTENTION_FUNCTIONS) == before and len(before) > 2
"""


def run(script, path):
    """With what is in `path`, besides what is importable here."""
    paths = os.pathsep.join([str(path), *filter(None, sys.path)])
    environment = os.environ | {"PYTHONPATH": paths}
    return subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)


def test_transformers_attention_is_as_it_was(tmp_path):
    """A stand-in package patches attention as kvpress does when it is imported."""
    pytest.importorskip("transformers")
    (tmp_path / "kvpress.py").write_text(PATCHING)
    done = run(UNTOUCHED, tmp_path)
    assert not done.returncode, done.stderr


needs_package = pytest.mark.skipif(importlib.util.find_spec("kvpress") is None, reason="kvpress is not installed")


@needs_package
def test_transformers_attention_is_as_it_was_with_the_package(tmp_path):
    done = run(UNTOUCHED, tmp_path)
    assert not done.returncode, done.stderr


@needs_package
@pytest.mark.parametrize(
    "press", ["KnormPress", "KeyDiffPress", "LagKVPress", "CURPress", "RandomPress", "StreamingLLMPress"]
)
def test_scorers_of_the_package_choose(press):
    policy, context = KVPress(press, 60, 8), Layer.random(width=400).at([400, 37, 12], 8)
    check_choice(policy.open().choose(context), context, policy.anchors)


@needs_package
@pytest.mark.parametrize("press", ["SnapKVPress", "ExpectedAttentionPress", "TOVAPress"])
def test_scorers_of_the_package_that_need_more_are_refused(press):
    with pytest.raises(UnsupportedError, match=f"{press} looks at"):
        KVPress(press)
