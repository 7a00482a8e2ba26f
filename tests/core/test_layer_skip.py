"""`layer_skip`: what is left out, what is asked of the host, and what is refused; on a table's host, whose layers are pretended."""

import itertools
import json

import pytest
import torch
from scipy import stats

from specplug import Speculator
from specplug.drafters.layer_skip import LayerSkip, evenly_spread, read_layers
from specplug.errors import OptionError, UnsupportedError
from specplug.host import SkippedLayers
from specplug.kv_policies import Full, Streaming
from specplug.needs import Need
from specplug.round import run_round

from .tools import TableHost, joint_law, near, plain_greedy, table

OFFERS = frozenset({Need.HISTORY, Need.TARGET_RUNNER, Need.LAYER_SKIPPING})
PROMPTS = [[0, 1], [3, 3, 2, 3, 3, 2], [1, 2, 3, 4, 5]]
SOME = SkippedLayers(frozenset({1, 4}), frozenset({2}))


class FakeLayeredHost(TableHost):
    """A table pretending to have layers: whatever is left out, its draft is the same disturbed table."""

    num_layers = 8

    def runner(self, model, policy, skipped=None):
        self.asked = (model, policy, skipped)
        return super().runner(model, policy)


def host_of(target, prompts=PROMPTS, **options):
    return FakeLayeredHost(target, near(target, 5), prompts, capabilities=OFFERS, **options)


def generate(host, drafter, **options):
    session = Speculator(drafter=drafter, **{"controller": "fixed"} | options).open(host)
    while len(host.active):
        session.observe(run_round(host, session))
    return session


# --- what is left out


@pytest.mark.parametrize("share", [0.01, 0.2, 0.45, 0.6, 0.99])
@pytest.mark.parametrize("num_layers", [3, 4, 5, 8, 16, 32, 33, 80])
def test_sublayers_are_evenly_spread_and_never_of_the_first_or_last_layer(num_layers, share):
    skipped = evenly_spread(num_layers, share)
    wanted = min(2 * (num_layers - 2), max(1, round(share * 2 * num_layers)))
    assert len(skipped.attention) + len(skipped.mlp) == wanted
    assert 0 <= len(skipped.attention) - len(skipped.mlp) <= 1
    for layers in (skipped.attention, skipped.mlp):
        assert layers <= set(range(1, num_layers - 1))
        gaps = [b - a for a, b in itertools.pairwise(sorted(layers))]
        assert not gaps or max(gaps) - min(gaps) <= 1
        if layers:  # and at the ends no more room than between two of them
            room = max(gaps) if gaps else num_layers
            assert min(layers) - 1 < room and num_layers - 2 - max(layers) < room


def test_the_host_is_asked_for_the_target_without_them():
    target = table(6, 1)
    host = host_of(target)
    Speculator(drafter=LayerSkip(0.3, kv_policy=Streaming(2, 5))).open(host)
    assert host.asked == (None, Streaming(2, 5), evenly_spread(8, 0.3))
    Speculator(drafter=LayerSkip(layers=SOME)).open(host)
    assert host.asked == (None, Full(), SOME)


def test_a_file_of_a_search_is_what_is_left_out(tmp_path):
    file = written(tmp_path, model="table", attention=[1, 4], mlp=[2], after={"agreement": 1.0})
    host = host_of(table(6, 1))
    session = Speculator(drafter=LayerSkip(layers=file)).open(host)
    assert host.asked[2] == SOME
    named = Speculator(drafter=LayerSkip(layers=SOME)).open(host)
    assert session.arms[0].drafter.key == named.arms[0].drafter.key == "LayerSkip[full, attention 1 4, mlp 2, stop 0.8]"


def test_the_key_tells_what_makes_it_draft_otherwise():
    host, keys = host_of(table(6, 1)), set()
    variants = [
        LayerSkip(),
        LayerSkip(0.2),
        LayerSkip(layers=SOME),
        LayerSkip(stop=0.0),
        LayerSkip(kv_policy=Streaming()),
    ]
    for drafter in variants:
        keys.add(Speculator(drafter=drafter).open(host).arms[0].drafter.key)
    assert len(keys) == len(variants)


# --- lossless


@pytest.mark.parametrize("stop", [0.0, 0.5, 0.8])
@pytest.mark.parametrize("tree", ["auto", "chain:length=6", "kary:branch=2,depth=3", "sequoia:size=9,depth=4"])
def test_greedy_equals_plain_decoding(tree, stop):
    target = table(6, 1)
    host = host_of(target, new_tokens=[17, 1, 30], starts=[0, 2, 1])
    session = generate(host, LayerSkip(stop=stop), tree=tree)
    for row, (prompt, count) in enumerate(zip(PROMPTS, (17, 1, 30), strict=True)):
        assert host.result(row) == plain_greedy(target, prompt, count)
    assert session.stats.accepted


def test_an_unsure_draft_stops():
    lengths = [generate(host_of(table(6, 1)), LayerSkip(stop=stop), tree="chain:length=8").stats for stop in (0.0, 0.6)]
    assert lengths[1].proposed < lengths[0].proposed / 2


@pytest.mark.parametrize("stop", [0.0, 0.6])
def test_sampling_follows_the_exact_law_of_three_tokens(stop):
    """n = 6000 rows fixed beforehand; a lossless sampler fails with probability 1e-5 (seeds are fixed: once)."""
    vocab, count, prompt, n = 4, 3, (0, 1, 2, 0, 1), 6000
    target = table(vocab, 2, 1.0)
    host = host_of(target, [prompt] * n, sampling=True, new_tokens=6)
    generate(host, LayerSkip(stop=stop))
    tokens = host.text[:, len(prompt) : len(prompt) + count]
    code = sum(tokens[:, i] * vocab ** (count - 1 - i) for i in range(count))
    counts = torch.bincount(code, minlength=vocab**count)
    assert stats.chisquare(counts.numpy(), (joint_law(target, prompt, count) * n).numpy()).pvalue > 1e-5


# --- refused


def written(tmp_path, **content):
    path = tmp_path / "layers.json"
    path.write_text(json.dumps(content))
    return str(path)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(OptionError, match=r"layers=.*nowhere\.json: cannot be read: No such file"):
        LayerSkip(layers=tmp_path / "nowhere.json")


@pytest.mark.parametrize("content", ["{", "\xff\xfe"])
def test_a_file_that_is_no_json_is_named(tmp_path, content):
    path = tmp_path / "layers.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(OptionError, match=r"layers\.json: not JSON"):
        LayerSkip(layers=path)


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        ([1], "no model is named"),
        (dict(attention=[1], mlp=[]), "no model is named"),
        (dict(model="table", attention=[1]), "'mlp' must be a list of layers from 0, got None"),
        (dict(model="table", attention="1", mlp=[]), "'attention' must be a list of layers from 0, got '1'"),
        (dict(model="table", attention=[True], mlp=[]), r"'attention' must be a list of layers from 0, got \[True\]"),
        (dict(model="table", attention=[1], mlp=[2.0]), r"'mlp' must be a list of layers from 0, got \[2.0\]"),
    ],
)
def test_a_file_of_something_else_says_what_is_wrong(tmp_path, content, cause):
    path = tmp_path / "layers.json"
    path.write_text(json.dumps(content))
    with pytest.raises(OptionError, match=rf"layers\.json: {cause}"):
        read_layers(path)


def test_a_file_of_another_model_is_refused_with_both_names(tmp_path):
    drafter = LayerSkip(layers=written(tmp_path, model="chair", attention=[1], mlp=[]))
    with pytest.raises(OptionError, match=r"layers\.json was found for 'chair'; the target is 'table'"):
        Speculator(drafter=drafter).open(host_of(table(6, 1)))


@pytest.mark.parametrize("part", ["attention", "mlp"])
@pytest.mark.parametrize("layer", [8, -1])
def test_layers_that_there_are_not_are_named_with_the_limit(tmp_path, part, layer):
    content = dict(model="table", attention=[1], mlp=[2]) | {part: [3, layer]}
    drafter = LayerSkip(layers=written(tmp_path, **content))
    with pytest.raises(OptionError, match=rf"layers\.json leaves out the {part} of layer {layer}; .* 0 to 7"):
        drafter.skipped("table", 8)
    with pytest.raises(OptionError, match=f"layers leaves out the {part} of layer {layer}; .* 0 to 7"):
        LayerSkip(layers=SkippedLayers(**{part: frozenset({layer})})).skipped("table", 8)


def test_two_layers_are_too_few():
    with pytest.raises(OptionError, match="a target of 2 layers has none between"):
        LayerSkip().skipped("table", 2)


@pytest.mark.parametrize("skip", [0.0, 1.0, -0.5])
def test_a_share_is_between_nothing_and_all(skip):
    with pytest.raises(OptionError, match=f"skip={skip} must be a share"):
        LayerSkip(skip)


def test_a_stop_and_a_policy_are_looked_at():
    with pytest.raises(OptionError, match="stop=2 must be a probability"):
        LayerSkip(stop=2)
    with pytest.raises(OptionError, match="kv_policy must be a KVPolicy"):
        LayerSkip(kv_policy="full")


def test_a_host_that_leaves_nothing_out_is_refused():
    host = TableHost(table(6, 1), table(6, 1), PROMPTS)
    with pytest.raises(UnsupportedError, match="layer_skipping"):
        Speculator(drafter=LayerSkip()).open(host)
