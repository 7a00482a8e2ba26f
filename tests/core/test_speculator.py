import pytest

import specplug
from specplug import Speculator
from specplug.controllers import Fixed, Goodput
from specplug.default import default_speculator, last_stats
from specplug.drafters import Drafter, ModelDraft, NoDraft, PromptLookup, SelfDraft
from specplug.errors import OptionError, SpecplugError, UnknownNameError
from specplug.kv_policies import Full, Streaming
from specplug.plugins import Plugin, plugins
from specplug.stats import SpecStats
from specplug.tree import ROOT_ONLY
from specplug.trees import Chain, Sequoia, TreeBuilder

from .tools import TableHost, near, table

TARGET = table(6, 1)


def host():
    return TableHost(TARGET, near(TARGET, 5), [[0, 1], [2, 3]])


def labels(**options):
    return [arm.label for arm in Speculator(**options).open(host()).arms]


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"drafter": "slef"}, UnknownNameError, "Did you mean 'self'"),
        ({"tree": "sequoa"}, UnknownNameError, "Did you mean 'sequoia'"),
        ({"controller": "fix"}, UnknownNameError, "Did you mean 'fixed'"),
        ({"kv_policy": "ful"}, UnknownNameError, "Did you mean 'full'"),
        ({"tree": "chain:size=3"}, UnknownNameError, "Known: length"),
        ({"tree": "chain:length=-2"}, OptionError, "negative"),
        ({"drafter": 3}, OptionError, "expected a name or a Drafter, got 3 of type int"),
        ({"tree": Fixed()}, OptionError, "expected a name or a TreeBuilder"),
        ({"kv_policy": None}, OptionError, "expected a name or a KVPolicy"),
        ({"kernel": 7}, OptionError, "kernel: expected a name"),
        ({"drafter": "model"}, OptionError, "needs a draft: pass draft_model="),
        ({"drafter": "self", "draft_model": "m"}, OptionError, "does not use it; use drafter='model'"),
        ({"drafter": PromptLookup(), "draft_model": "m"}, OptionError, "does not use it"),
        ({"drafter": ModelDraft("other"), "draft_model": "m"}, OptionError, "does not use it"),
    ],
)
def test_what_is_wrong_is_said_at_once(options, kind, message):
    with pytest.raises(kind, match=message) as caught:
        Speculator(**options)
    assert isinstance(caught.value, SpecplugError)


def test_strings_and_objects_mean_the_same():
    names = labels(
        drafter="self", kv_policy="streaming:sink=2,window=9", tree="sequoia:size=9,depth=3", controller="fixed"
    )
    objects = labels(drafter=SelfDraft(Streaming(2, 9)), tree=Sequoia(9, 3), controller=Fixed())
    assert names == objects == ["SelfDraft/tree:9x3"]


def test_the_policy_reaches_the_drafter():
    for drafter, model in (("self", None), ("model", "m")):
        spec = Speculator(drafter=drafter, draft_model=model, kv_policy="streaming:sink=1,window=3")
        assert spec._candidates[0].kv_policy == Streaming(1, 3)
    assert Speculator(drafter="self")._candidates[0].kv_policy == Streaming()
    assert Speculator(drafter="model", draft_model="m")._candidates[0].kv_policy == Full()


def test_defaults_choose_among_what_is_there():
    assert labels() == [
        "PromptLookup/chain:10",
        "PromptLookup/chain:4",
        *(f"SelfDraft[{budget}]/chain:{length}" for budget in (256, 512, 1024) for length in (3, 2, 5)),
        "none",
    ]
    with_model = labels(draft_model=TARGET)
    assert with_model[0].startswith("ModelDraft/")
    assert with_model[-1] == "none"
    assert isinstance(Speculator()._controller, Goodput)
    assert not any(label.startswith("SelfDraft") for label in labels(kv_policy="full"))  # it would read all twice


def test_its_shapes_are_those_of_its_arms_and_the_root_alone():
    for options in ({}, {"draft_model": TARGET}, {"drafter": "self", "tree": "sequoia:size=9"}, {"drafter": "none"}):
        speculator = Speculator(**options)
        shapes = speculator.shapes
        assert {*shapes} == {arm.shape for arm in speculator.open(host()).arms} | {ROOT_ONLY}
        assert len({*shapes}) == len(shapes) and shapes[-1] == ROOT_ONLY
        assert max(shape.num_nodes for shape in shapes) == speculator.max_nodes


def test_naming_one_leaves_the_rest_to_be_chosen():
    assert labels(tree="chain:length=2", kv_policy="streaming:window=60") == [
        "PromptLookup/chain:2", "SelfDraft/chain:2", "none"
    ]  # fmt: skip
    assert labels(drafter="prompt_lookup") == ["PromptLookup/chain:10", "PromptLookup/chain:4", "none"]
    assert labels(controller="fixed")[0] == "PromptLookup/chain:10"
    assert labels(drafter="none") == ["NoDraft/chain:0"]
    assert labels(drafter="none", controller="fixed", tree="chain:length=4") == ["NoDraft/chain:0"]


def test_self_speculation_waits_for_a_long_context():
    arms = {
        arm.label: arm for arm in Speculator(drafter="self", kv_policy="streaming:sink=4,window=60").open(host()).arms
    }
    assert arms["SelfDraft/chain:3"].min_context == 256
    assert arms["none"].min_context == 0
    of_all = {arm.label: arm.min_context for arm in Speculator().open(host()).arms}
    assert [of_all[f"SelfDraft[{budget}]/chain:3"] for budget in (256, 512, 1024)] == [1024, 2048, 4096]


def test_one_runner_serves_all_trees_of_a_drafter():
    arms = Speculator(drafter="self").open(host()).arms
    assert len({id(arm.drafter) for arm in arms if arm.label != "none"}) == 1


def test_a_tree_wider_than_the_vocabulary_is_refused():
    with pytest.raises(OptionError, match="a node with 7 children, the vocabulary 6 tokens"):
        Speculator(drafter="self", tree="kary:branch=7,depth=1").open(host())


def test_a_strangers_drafter_may_take_the_model_and_the_policy(monkeypatch):
    class Eagle(Drafter):
        def __init__(self, model=None, kv_policy=None, layers: int = 1):
            self.model, self.kv_policy, self.layers = model, kv_policy, layers

    monkeypatch.setitem(plugins()._tables["drafters"], "eagle", Plugin("drafters", "eagle", Eagle, "test"))
    spec = Speculator(drafter="eagle:layers=2", draft_model="m", kv_policy="full")
    made = spec._candidates[0]
    assert (made.model, made.kv_policy, made.layers) == ("m", Full(), 2)


def test_a_plugin_that_makes_something_else_is_named(monkeypatch):
    monkeypatch.setitem(plugins()._tables["trees"], "odd", Plugin("trees", "odd", dict, "test"))
    with pytest.raises(OptionError, match="expected a name or a TreeBuilder, got {} of type dict"):
        Speculator(tree="odd")


def test_an_object_of_ones_own():
    class Pair(TreeBuilder):
        def build(self, acceptance=()):
            return Chain(2).build()

    assert labels(drafter=NoDraft(), tree=Pair(), controller="fixed") == ["NoDraft/chain:0"]
    assert labels(drafter="self", tree=Pair(), controller="fixed") == ["SelfDraft/chain:2"]


def test_opening_does_not_touch_the_drafter_that_was_given():
    given = SelfDraft()
    Speculator(drafter=given).open(host())
    assert not hasattr(given, "host")


def test_the_module_has_a_speculator_that_remembers():
    assert default_speculator() is default_speculator() is specplug.default_speculator()
    assert isinstance(last_stats(), SpecStats)
    assert last_stats() is default_speculator().stats


def test_every_public_name_exists_and_is_sorted():
    assert specplug.__all__ == sorted(specplug.__all__, key=lambda name: (name[0].islower(), name))
    assert all(hasattr(specplug, name) for name in specplug.__all__)


def test_widths_are_what_a_verify_may_have():
    assert Speculator(drafter="prompt_lookup", tree="chain:length=5", controller="fixed").widths == (1, 6)
    assert Speculator(drafter="prompt_lookup", tree="chain:length=5").widths == (1, 2, 3, 4, 5, 6)
    assert Speculator(drafter="none", controller="fixed").widths == (1,)
