"""`Speculator(profile=)`: read at construction, checked against the host, and what planning starts from."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from specplug import OptionError, Speculator
from specplug.controllers import Arm, Memory
from specplug.controllers.memory import start
from specplug.cost.base import Load
from specplug.cost.calibrated import Calibrated, Drafting, Prior
from specplug.cost.fitted import FittedCost, features
from specplug.cost.identity import device_name, dtype_name, model_name
from specplug.cost.online import OnlineCost
from specplug.cost.profile import Profile, Seen, read_profile
from specplug.cost.scale import Scale
from specplug.drafters import ModelDraft, NoDraft, PromptLookup, SelfDraft
from specplug.kv_policies import Full, Streaming
from specplug.tree import ROOT_ONLY
from specplug.trees import Chain, Sequoia

from .tools import TableHost, near, table

TARGET = table(6, 1)
WIDTH = len(features(Load(1, 1, 1)))
RANKS = (0.7, 0.12, 0.06)


def flat(seconds):
    return (seconds, *[0.0] * (WIDTH - 1))


def by_context(seconds):
    return (0.0, 0.0, 0.0, seconds, *[0.0] * (WIDTH - 4))


LOOKUP = PromptLookup().key
SELF = SelfDraft(Streaming(4, 28)).key
COST = FittedCost({"target": flat(1e-2), "overhead": flat(1e-3), SELF: by_context(1e-5), LOOKUP: flat(0.0)})
PROFILE = Profile(
    "m",
    "cpu",
    "float32",
    "auto",
    COST,
    acceptance={
        SELF: {"greedy": Seen(RANKS, trials=600), "sampled": Seen((0.5, 0.2), trials=600)},
        LOOKUP: {"greedy": Seen((0.4,), (0.4, 0.8, 0.9), proposing=0.6, trials=320)},
    },
)
ARMS = [
    Arm("SelfDraft/chain:3", SelfDraft(Streaming(4, 28)), Chain(3).build()),
    Arm("PromptLookup/chain:10", PromptLookup(), Chain(10).build()),
    Arm("ModelDraft/tree:8x4", ModelDraft("m"), Sequoia(8, 4).build()),
    Arm("none", NoDraft(), ROOT_ONLY),
]


def host(identity=("m", "cpu", "float32")):
    made = TableHost(TARGET, near(TARGET, 5), [[0, 1], [2, 3]])
    made.identity = identity
    return made


def test_a_file_and_a_profile_mean_the_same(tmp_path):
    path = tmp_path / "profile.json"
    path.write_text(PROFILE.as_json())
    for given in (path, str(path), PROFILE):
        spec = Speculator(drafter="prompt_lookup", profile=given)
        assert spec._memory.profile == PROFILE
        assert spec.open(host()).arms
    assert Speculator()._memory.profile is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("nowhere/p.json", "there is no file .*p.json.*; `specplug calibrate` writes one"),
        (3, "profile: expected a file or a Profile, got 3 of type int"),
    ],
)
def test_what_is_no_profile_is_refused_at_construction(given, message):
    with pytest.raises(OptionError, match=message):
        Speculator(profile=given)


def test_a_broken_file_is_refused_by_its_name(tmp_path):
    path = tmp_path / "broken.json"
    path.write_text('{"format": 1}')
    with pytest.raises(OptionError, match="broken.json is not a profile"):
        Speculator(profile=path)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_profile_of_something_else_is_refused(place):
    identity = ["m", "cpu", "float32"]
    identity[place] = "other"
    spec = Speculator(drafter="prompt_lookup", profile=PROFILE)
    with pytest.raises(OptionError, match="this is 'other'; run `specplug calibrate`"):
        spec.open(host(tuple(identity)))
    with pytest.raises(OptionError, match="this is 'other'"):
        spec.check(host().capabilities, 6, "TableHost", tuple(identity))


@pytest.mark.parametrize("wrong", [Seen, lambda *a: Seen((0.5,), (1.5,)), lambda *a: Seen((0.5,), proposing=-1.0)])
def test_an_acceptance_is_made_of_probabilities(wrong):
    with pytest.raises(OptionError, match="numbers from 0 to 1"):
        wrong(())


def test_what_was_seen_comes_back_from_a_file(tmp_path):
    path = tmp_path / "p.json"
    path.write_text(PROFILE.as_json())
    assert read_profile(path).acceptance == PROFILE.acceptance


def test_planning_starts_from_the_profile():
    learnt = Memory(PROFILE).of(SimpleNamespace(key="h"), ARMS)
    assert isinstance(learnt.cost, Calibrated)
    plain = Scale("none", 2, 2, 0, 2000)
    assert learnt.cost.seconds(plain, "s") == pytest.approx(1.1e-2) and learnt.cost.tried(plain, "s") == 2
    # three levels, each of which reads the budget of both rows; a draft that was not measured takes a share of the target
    assert learnt.cost.seconds(Scale("SelfDraft/chain:3", 2, 8, 3, 2000), "s") == pytest.approx(1.1e-2 + 3 * 64e-5)
    assert learnt.cost.seconds(Scale("PromptLookup/chain:10", 2, 22, 0, 2000), "s") == pytest.approx(1.1e-2)
    assert learnt.cost.seconds(Scale("ModelDraft/tree:8x4", 2, 18, 4, 2000), "s") == pytest.approx(1.1e-2 + 4 * 2e-3)

    greedy = learnt.acceptance["SelfDraft/chain:3", False]
    assert greedy.first()[:4] == pytest.approx([0.7] * 4) and greedy.samples == 64
    assert greedy.others()[:2] == pytest.approx([0.4, 0.2], abs=0.04)
    assert learnt.acceptance["SelfDraft/chain:3", True].first()[0] == pytest.approx(0.5)
    lookup = learnt.acceptance["PromptLookup/chain:10", False]
    assert lookup.first()[:2] == pytest.approx([0.4, 0.78], abs=0.04) and (lookup.samples, lookup.proposing) == (
        40,
        0.6,
    )
    assert ("PromptLookup/chain:10", True) not in learnt.acceptance
    assert not any("ModelDraft" in label for label, _ in learnt.acceptance)


def test_a_memory_keeps_what_was_learnt_and_without_a_profile_guesses():
    memory = Memory(PROFILE)
    first = memory.of(SimpleNamespace(key="h"), ARMS[1:])
    first.acceptance["PromptLookup/chain:10", False].tried[0] = 7.0
    again = memory.of(SimpleNamespace(key="h"), ARMS)
    assert again is first and again.acceptance["PromptLookup/chain:10", False].samples == 7.0
    assert ("SelfDraft/chain:3", False) in again.acceptance
    guessed = Memory().of(SimpleNamespace(key="h"), ARMS)
    assert type(guessed.cost) is OnlineCost and not guessed.acceptance


def test_the_first_round_sets_the_scale_whichever_it_is():
    """A machine twice as slow as the profile's: what drafting costs beside plain decoding stays as measured."""
    cost = Calibrated(Prior(COST, {"d": Drafting(SELF, 32)}))
    work, plain = Scale("d", 1, 4, 3, 1000), Scale("none", 1, 1, 0, 1000)
    cost.observe(work, "s", 2 * cost.seconds(work, "s"))
    assert cost.seconds(plain, "s") == pytest.approx(2.2e-2)
    assert cost.drafters["d"].value == pytest.approx(0.0)
    cost.observe(work, "s", 2 * cost.seconds(work, "s"))  # from here on the drafter is to blame
    assert cost.seconds(plain, "s") == pytest.approx(2.2e-2) and cost.drafters["d"].value > 0


def test_a_generations_first_rounds_do_not_set_the_scale_for_long():
    cost, plain = Calibrated(Prior(COST, {})), Scale("none", 1, 1, 0, 1000)
    believed = cost.seconds(plain, "s")
    cost.observe(plain, "s", 3 * believed, 2 * believed, settling=True)
    assert not cost.settled("s")
    cost.observe(plain, "s", believed)
    assert cost.settled("s") and cost.seconds(plain, "s") == pytest.approx(believed)


def test_certain_and_hopeless_drafts_can_be_started_from():
    assert start(Seen((1.0,), trials=512)).first()[0] == pytest.approx(1.0)
    assert start(Seen((0.0, 0.0), trials=512)).first()[0] < 0.02
    assert start(Seen((0.5,))).samples == 0


def test_names_are_the_same_wherever_a_model_was_loaded_from():
    config = SimpleNamespace(
        num_hidden_layers=2,
        hidden_size=64,
        intermediate_size=96,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=97,
    )
    assert model_name("Llama", config) == "Llama-2x64x96-h4.2-v97"
    assert model_name("GPT2", SimpleNamespace(vocab_size=9)) == "GPT2-v9"
    assert device_name(torch.device("cpu")).startswith("cpu ") and device_name(torch.device("meta")) == "meta"
    assert dtype_name(torch.bfloat16) == "bfloat16"


def test_drafters_say_what_a_measurement_holds_for():
    assert SelfDraft(Streaming(4, 508)).key == "SelfDraft[streaming 512]"
    assert PromptLookup(ngram=2).key == "PromptLookup[2-1]" and NoDraft().key == "NoDraft"
    draft = ModelDraft("m", Full())
    assert draft.key == "ModelDraft[full]"
    draft._runner = SimpleNamespace(identity="Llama-2x64")
    assert draft.key == "ModelDraft[Llama-2x64, full]"


def test_a_target_that_drafts_over_a_budget_nobody_measured_takes_its_own_time_over_that_budget():
    cost = FittedCost(COST.coefficients | {"target": by_context(1e-5)})
    arms = [Arm("wide", SelfDraft(Streaming(4, 60)), Chain(3).build()), ARMS[-1]]
    learnt = Memory(replace(PROFILE, cost=cost)).of(SimpleNamespace(key="h"), arms)
    expected = 2000e-5 + 1e-3 + 3 * 2 * 64e-5
    assert learnt.cost.seconds(Scale("wide", 2, 8, 3, 2000), "s") == pytest.approx(expected)
