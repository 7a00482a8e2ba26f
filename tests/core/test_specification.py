import pytest

from specplug.controllers import Fixed, Goodput
from specplug.drafters import NoDraft, PromptLookup
from specplug.errors import OptionError, SpecplugError, UnknownNameError
from specplug.kv_policies import Streaming
from specplug.specification import build, parse
from specplug.trees import Chain, KAry, Sequoia


@pytest.mark.parametrize(
    ("text", "name", "options"),
    [
        ("chain", "chain", {}),
        (" chain : length = 4 ", "chain", {"length": 4}),
        (
            "a:b=1,c=2.5,d=true,e=False,f=text,g=1e-3",
            "a",
            {"b": 1, "c": 2.5, "d": True, "e": False, "f": "text", "g": 1e-3},
        ),
        ("a:path=/models/x:y=z", "a", {"path": "/models/x:y=z"}),
        ("a:b=1,", "a", {"b": 1}),
        ("a:b=__import__('os')", "a", {"b": "__import__('os')"}),
    ],
)
def test_parse(text, name, options):
    parsed = parse(text)
    assert parsed == (name, options)
    assert [type(value) for value in parsed[1].values()] == [type(value) for value in options.values()]


@pytest.mark.parametrize("text", ["a:b", "a:=1", "a:b=", "a:b=1,c", "a: , =2"])
def test_what_cannot_be_read(text):
    with pytest.raises(OptionError, match="write name:key=value,key=value"):
        parse(text)


def test_an_option_twice():
    with pytest.raises(OptionError, match="'length' stands twice"):
        build("trees", "chain:length=1,length=2")


@pytest.mark.parametrize(
    ("kind", "text", "made"),
    [
        ("trees", "chain:length=3", Chain(3)),
        ("trees", "sequoia:size=9,depth=2", Sequoia(9, 2)),
        ("trees", "kary", KAry()),
        ("kv_policies", "streaming:sink=2,window=10", Streaming(2, 10)),
        ("drafters", "none", NoDraft()),
        ("drafters", "prompt_lookup:ngram=5", PromptLookup(5)),
        ("controllers", "fixed", Fixed()),
        ("controllers", "auto:allowance=1", Goodput(allowance=1.0)),
    ],
)
def test_build(kind, text, made):
    assert build(kind, text) == made


@pytest.mark.parametrize(
    ("kind", "text", "kind_of_error", "message"),
    [
        ("trees", "chian", UnknownNameError, "Did you mean 'chain'"),
        ("trees", "", UnknownNameError, "Unknown tree ''"),
        ("trees", "chain:lenght=3", UnknownNameError, "Unknown option of tree 'chain' 'lenght'. Did you mean 'length'"),
        ("trees", "chain:length=3.5", OptionError, "length=3.5 must be a whole number"),
        ("trees", "chain:length=many", OptionError, "must be a whole number"),
        ("trees", "chain:length=true", OptionError, "must be a whole number"),
        ("trees", "chain:length=-1", OptionError, "must not be negative"),
        ("controllers", "auto:allowance=lots", OptionError, "must be a number"),
        ("drafters", "self:kv_policy=full", OptionError, r"Speculator\(kv_policy="),
        ("kv_policies", "streaming:window=0", OptionError, "at least 1"),
    ],
)
def test_what_cannot_be_built(kind, text, kind_of_error, message):
    with pytest.raises(kind_of_error, match=message) as caught:
        build(kind, text)
    assert isinstance(caught.value, SpecplugError)


def test_a_plugins_own_type_error_becomes_an_option_error(monkeypatch):
    from specplug.plugins import Plugin, plugins

    def factory(count: int, flag: bool = False, name: str = "", other: "list" = ()):
        if name == "boom":
            raise ValueError("boom is not allowed")
        return (count, flag, name, other)

    monkeypatch.setitem(plugins()._tables["trees"], "odd", Plugin("trees", "odd", factory, "test"))
    assert build("trees", "odd:count=3,flag=true,name=007,other=1") == (3, True, "007", 1)
    with pytest.raises(OptionError, match="missing 1 required"):
        build("trees", "odd")
    with pytest.raises(OptionError, match="boom is not allowed"):
        build("trees", "odd:count=1,name=boom")
    with pytest.raises(OptionError, match="true or false"):
        build("trees", "odd:count=1,flag=1")
