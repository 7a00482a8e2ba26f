"""`specplug bench --all-drafters`: its texts, what it counts as memory, who takes part, and small runs of the whole."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from generate_tools import Models as TinyModels

from specplug import Drafter, OptionError, SpecStats, Speculator, UnsupportedError
from specplug.cli import main
from specplug.plugins import plugins
from specplug_hf.commands import (
    comparison,
    comparison_drafters,
    comparison_report,
    comparison_result,
    comparison_texts,
    measure,
)
from specplug_hf.commands.comparison_drafters import ENTRIES, Entry, Resources, cast, contender
from specplug_hf.commands.comparison_memory import MemoryWatch, storage_bytes, tensors_of
from specplug_hf.commands.comparison_result import Kind
from specplug_hf.commands.comparison_texts import KINDS, OTHER, PROSE, REPEATING, Text, texts
from specplug_hf.commands.measure import Sample, call
from specplug_hf.commands.models import Models, load
from specplug_hf.commands.options import ModelOptions
from specplug_hf.commands.setups import OURS, Contender, Option
from specplug_hf.commands.summary import Spread

SMALL = ["--context", "48", "--new-tokens", "8", "--prompts", "1", "--runs", "2", "--quiet"]


@pytest.fixture(scope="module")
def models() -> Models:
    return load(ModelOptions())


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer places to choose from, and fewer drafters, one of them unheard of."""
    names = {"none", "prompt_lookup", "model"}
    entries = [entry for entry in ENTRIES if entry.name in names]
    entries.insert(1, Entry("unheard_of", ("unheard_of:size=3",)))
    for module in (comparison_drafters, comparison.comparison_report):
        monkeypatch.setattr(module, "ENTRIES", tuple(entries))
    monkeypatch.setattr(comparison_texts, "PLACES", (0.5,))


def slow_share(prompt: list[int], continuation: list[int], gram: int) -> float:
    """By the definition, one n-gram at a time."""
    text, found, count = prompt + continuation, 0, 0
    for end in range(max(gram, len(prompt) + 1), len(text) + 1):
        count += 1
        found += any(text[k - gram : k] == text[end - gram : end] for k in range(gram, end))
    return found / count if count else 0.0


def test_the_share_of_n_grams_that_stood_before() -> None:
    assert comparison_texts.repeated_share([1, 2, 3, 4], [1, 2, 3, 4]) == 1 / 4
    assert comparison_texts.repeated_share([7, 7, 7, 7, 7], [7, 7]) == 1
    assert comparison_texts.repeated_share([1], [2]) == 0
    dice = random.Random(0)
    for _ in range(50):
        prompt, more = ([dice.randrange(3) for _ in range(dice.randrange(12))] for _ in range(2))
        for gram in (1, 2, 4):
            assert comparison_texts.repeated_share(prompt, more, gram) == pytest.approx(slow_share(prompt, more, gram))


def test_docstrings_stand_in_the_order_of_the_source() -> None:
    source = '"""One."""\nclass A:\n    """Two\n    lines."""\n    def f(self):\n        """Three."""\n        "no"\ndef g(): "Four."\n'
    assert comparison_texts.docstrings(source) == ["One.", "Two\nlines.", "Three.", "Four."]
    assert comparison_texts.docstrings("def f(:") == []


def test_comments_and_strings_of_several_lines_are_prose() -> None:
    source = 'x = "a"  # why\n"""Two\nlines."""\ny = 1\nz = """cut'
    spans = comparison_texts.prose_spans(source)
    assert [source[first:last] for first, last in spans] == ["# why", '"""Two\nlines."""']


def test_the_texts_are_of_the_kinds_they_are_called(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison_texts, "PLACES", (0.3, 0.6))
    found = texts(models, 48, 12, 3, quiet=True)
    assert tuple(found) == KINDS
    assert all(len(listed) == 3 and all(len(text.ids) == 48 for text in listed) for listed in found.values())
    assert len({text.name for listed in found.values() for text in listed}) == 9
    for text in [
        found[REPEATING][0],
        found[OTHER][0],
        found[PROSE][0],
    ]:  # alone, as in the batch that they were chosen by
        row = call(models, Option("generate"), text.batch(models.target.device), 12)[0, 48:].tolist()
        assert text.share == pytest.approx(slow_share(list(text.ids), row, 4))
    least, most = (sorted(text.share for text in found[kind]) for kind in (REPEATING, OTHER))
    assert most[-1] <= least[0]
    assert most[0] < least[-1]
    assert all(models.tokenizer.decode(text.ids).startswith('"""') for text in found[PROSE])
    assert [text.ids for text in texts(models, 48, 12, 3, quiet=True)[OTHER]] == [text.ids for text in found[OTHER]]


def test_a_prompt_of_code_is_not_made_of_comments_nor_ends_in_a_docstring(
    models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    from specplug_hf.demo import prompts

    code, quoted = "x = 1\n" * 24, '"""Begun\nand ended."""\n'
    text = (code + quoted + "y = 2\n" * 36 + "# no no\n" * 10 + "z = 3\n" * 40)[: 4 * (len(code) + 3)]
    monkeypatch.setattr(comparison_texts, "PLACES", (0.25, 0.5, 0.75))
    monkeypatch.setattr(prompts, "count", lambda: 1)
    monkeypatch.setattr(prompts, "prompt_text", lambda tokens, index: text)
    found = dict(comparison_texts.code(models, 20))
    assert list(found) == ["text 0 at 0.5"]  # a docstring has begun at a quarter, three quarters are in comments
    last = models.tokenizer.decode(found["text 0 at 0.5"])
    assert last.endswith("y = 2") and "#" not in last


def test_too_few_texts_is_an_error(models: Models) -> None:
    with pytest.raises(OptionError, match="fewer --prompts or a shorter --context"):
        texts(models, 48, 8, 10**4, quiet=True)


@dataclass(slots=True)
class Slotted:
    """Holds a tensor in a slot."""

    inside: Any


@dataclass
class Holder:
    """Holds other things, itself among them."""

    parts: list[Any] = field(default_factory=list)


def test_every_tensor_is_found_once() -> None:
    base = torch.zeros(10)
    holder = Holder([Slotted(base), {"view": base[2:5], ("key",): (torch.zeros(3, dtype=torch.int64),)}, "text", 3])
    hidden = Holder([torch.zeros(100)])
    holder.parts += [holder, hidden, torch.nn.Linear(2, 2, bias=False)]
    found = list(tensors_of([holder], but_not=[hidden]))
    assert sorted(t.numel() for t in found) == [3, 3, 4, 10]
    assert storage_bytes(found) == 10 * 4 + 3 * 8 + 4 * 4
    assert storage_bytes(found, but_not=[base[:1]]) == 3 * 8 + 4 * 4


def test_memory_of_drafters(models: Models) -> None:
    batch = Text("text", tuple(range(40, 100)), 0.0).batch(models.target.device)

    def held(**settings: Any) -> int:
        option = Option("", {"assistant": Speculator(controller="fixed", **settings)})
        with MemoryWatch(models.target) as watch:
            call(models, option, batch, 12)
        return watch.bytes

    assert held(drafter="none") == 0
    assert held(drafter="prompt_lookup") == 0
    # a text: its tokens and three chains, of about a hundred bytes a token each at most
    assert 72 * (8 + 3 * 8) <= held(drafter="suffix", tree="chain:length=3") < 72 * 500
    assert models.draft is not None
    weights = sum(p.numel() * p.element_size() for p in models.draft.parameters())
    config = models.draft.config
    token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
    drafting = held(drafter="model", draft_model=models.draft, tree="chain:length=3")
    assert weights + 72 * token <= drafting < weights + 1024 * token
    target = models.target.config
    token = 2 * target.num_hidden_layers * target.num_key_value_heads * target.head_dim * 4
    ring = held(drafter="self", kv_policy="streaming:sink=4,window=12", tree="chain:length=3")
    assert 16 * token <= ring < 256 * token  # a ring and its scratch, neither the target's weights nor its cache
    assert held(drafter="self", kv_policy="full", tree="chain:length=3") < token
    assert not plugins().manager.hook.specplug_round_finished.get_hookimpls()


def test_every_drafter_of_ours_is_in_the_table() -> None:
    ours = {name for name in plugins().names("drafters") if plugins().get("drafters", name).source == "specplug"}
    listed = {text.partition(":")[0] for entry in ENTRIES for text in entry.specifications}
    assert ours <= listed
    assert len({entry.name for entry in ENTRIES}) == len(ENTRIES)


def test_every_policy_of_ours_is_in_the_table() -> None:
    """But `full`, which leaves nothing out, and `kvpress`, which needs that package."""
    ours = {name for name in plugins().names("kv_policies") if plugins().get("kv_policies", name).source == "specplug"}
    listed = {policy.partition(":")[0] for entry in ENTRIES for policy in entry.policies}
    assert ours - {"full", "kvpress"} == listed - {"auto"}
    for entry in ENTRIES:
        for policy in entry.policies:
            Speculator(drafter="self", kv_policy=policy)  # whose options must go together


def test_who_cannot_take_part_is_told_why(models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = (
        Entry("unheard_of", ("unheard_of",)),
        Entry("model", ("model",), takes_draft=True),
        Entry("untrained", ("prompt_lookup:ngram={heads}",)),
        Entry("unsearched", ("prompt_lookup:ngram={layers}",)),
        Entry("misspelt", ("prompt_lookup:gram=2",)),
        Entry("none", ("none",)),
    )
    monkeypatch.setattr(comparison_drafters, "ENTRIES", entries)
    alone = Models(models.target, None, models.tokenizer, None, "a target")
    present, absent = cast(alone, Resources(False, tmp_path))
    assert [one.name for one in present] == ["none"]
    why = {one.name: one.why for one in absent}
    assert "Unknown drafter 'unheard_of'" in why["unheard_of"]
    assert "--draft" in why["model"]
    assert "specplug train mlp-speculator" in why["untrained"]
    assert "specplug train layer-skip" in why["unsearched"]
    assert "'gram'" in why["misspelt"]


def test_an_entry_has_every_tree_that_suits_it_with_every_policy(models: Models, tmp_path: Path) -> None:
    made = contender(
        Entry("x", ("self",), ("streaming:window=9", "streaming:window=12")), models, Resources(True, tmp_path)
    )
    shapes = Speculator(drafter="self").drafters[0].shapes()
    speculators = [option.speculator for option in made.options]
    assert [s.shapes[0] for s in speculators if s is not None] == [*shapes, *shapes]
    assert [s.drafters[0].budget for s in speculators if s is not None] == [13] * len(shapes) + [16] * len(shapes)
    assert len({option.label for option in made.options}) == 2 * len(shapes)
    assert len({option.tree for option in made.options}) == len(shapes)
    assert all(option.label.endswith(f", {option.tree}") for option in made.options)


def test_what_learns_is_made_anew_for_every_call(models: Models, tmp_path: Path) -> None:
    for learns in (True, False):
        option = contender(Entry("x", ("prompt_lookup",), learns=learns), models, Resources(True, tmp_path)).options[0]
        seen = []
        for _ in range(2):
            with option.arranged(models) as keywords:
                seen.append(keywords["assistant"])
        assert (seen[0] is not seen[1]) is learns


def test_a_corpus_is_made_of_what_is_not_held_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison_drafters, "CORPUS_CHARACTERS", 100_000)
    from specplug_hf.demo.corpus import is_held_out

    folder = Path(Resources(True, tmp_path)["corpus"])
    files = list(folder.iterdir())
    assert all(file.read_text().strip() for file in files)
    assert 50_000 < sum(len(file.read_text()) for file in files) <= 100_000
    assert not any(
        is_held_out(file.name.removesuffix(".txt").replace(".", "/").replace("/py", ".py")) for file in files
    )


def sample(name: str, batch: int, repeat: int, rate: float, emitted: int = 0, option: str = "option") -> Sample:
    """One of 101 tokens in one second at rate 100."""
    stats = SpecStats(row_rounds=10, emitted=emitted, proposed=40, accepted=emitted - 10) if emitted else None
    return Sample(name, option, batch, repeat, 100 / rate, 0.0, 101, 1, stats, tree=option.rpartition(", ")[2])


def test_figures_are_of_pairs(tmp_path: Path) -> None:
    kind = Kind(REPEATING, [Text(str(n), (1,), n / 10) for n in range(4)])
    kind.samples = [
        *(sample("plain", n, r, rate) for n, r, rate in ((0, 0, 10), (1, 0, 20), (0, 1, 40))),
        *(sample("x", n, r, rate, emitted) for n, r, rate, emitted in ((0, 0, 20, 30), (1, 0, 60, 40), (0, 1, 40, 20))),
    ]
    found = kind.figures("x")
    assert found.speedup.median == pytest.approx(2)  # of 2, 3 and 1
    assert (found.speedup.low, found.speedup.high, found.speedup.n) == pytest.approx((1.5, 2.5, 3))
    assert found.accepted_length == pytest.approx(90 / 30)
    assert found.acceptance == pytest.approx(60 / 120)
    assert [text.name for text in kind.chosen_on] == ["1", "3"]
    assert [text.name for text in kind.measured] == ["0", "2"]
    assert kind.share == pytest.approx(0.1)


def chosen_from() -> Kind:
    """A union and its parts, tried with some trees on two texts; one part was not tried with every tree."""
    kind = Kind(PROSE, [Text("0", (1,), 0.5)])
    kind.choosing = [
        *(sample("both", n, 0, 10, emitted, "parts=a+b, chain 4") for n, emitted in ((0, 30), (1, 50))),
        *(sample("a", n, 0, 10, emitted, "chain 4") for n, emitted in ((0, 30), (1, 20))),
        *(sample("b", n, 0, 10, emitted, "ngram=2, chain 4") for n, emitted in ((0, 10), (1, 60))),
        sample("both", 0, 0, 10, 60, "parts=a+b, tree 8x4"),
        sample("a", 0, 0, 10, 80, "tree 8x4"),
        sample("both", 0, 0, 10, 90, "parts=a+b, chain 9"),
    ]
    return kind


UNION = Entry("both", ("merged:parts=a+b",), parts=("a", "b"))


def test_a_union_stands_beside_the_better_of_its_parts_with_the_same_tree() -> None:
    assert chosen_from().beside_parts(UNION) == {"chain 4": (4.0, 3.5), "tree 8x4": (6.0, 8.0)}


def test_nothing_of_the_table_is_cut_off(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(comparison_report, "ENTRIES", (replace(UNION, name="layer_skip (searched)"), UNION))
    kinds = [chosen_from() for _ in KINDS]
    for kind, kind.name in zip(kinds, KINDS, strict=True):
        kind.samples = [sample("plain", 0, 0, 100)]
    long = comparison_result.Figures("chain 4", Spread(15.13, 14.67, 15.48, 6), Spread(1, 1, 1, 1), 15.24, 1.0)
    lines = [
        comparison_result.Line(name, 81_000, {kind.name: long for kind in kinds})
        for name in ("layer_skip (searched)", "both")
    ]
    comparison_report.show(lines, [], kinds)
    printed = capsys.readouterr().out
    assert "…" not in printed and printed.count("81.0 kB") == 2
    assert printed.count("15.13 [14.67-15.48]") == 6 and printed.count("100 %") == 6
    assert (
        "both, length beside a or b with the same tree, prose: chain 4 4.00 to 3.50, tree 8x4 6.00 to 8.00" in printed
    )


@pytest.mark.usefixtures("few")
def test_the_whole_prints_one_row_a_drafter(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file, picture = tmp_path / "found.json", tmp_path / "found.png"
    assert main(["bench", "--all-drafters", *SMALL, "--json", str(file), "--plot", str(picture)]) == 0
    printed = capsys.readouterr().out
    assert "every output identical" in printed
    assert "unheard_of is not available: Unknown drafter 'unheard_of'" in printed
    assert all(
        any(line.startswith(name) for line in printed.splitlines()) for name in ("none", "prompt_lookup", "model")
    )
    assert all(kind in printed for kind in (*KINDS, "median [quartiles]"))
    found = json.loads(file.read_text())
    assert [line["drafter"] for line in found["drafters"]] == ["none", "prompt_lookup", "model"]
    assert list(found["not_available"]) == ["unheard_of"]
    for line in found["drafters"]:
        assert list(line["kinds"]) == list(KINDS)
        assert all(each["speedup"]["n"] == 2 and each["speedup"]["median"] > 0 for each in line["kinds"].values())
        assert all(each["accepted_length"] >= 1 for each in line["kinds"].values())
    assert all(len(kind["measured_on"]) == len(kind["chosen_on"]) == 1 for kind in found["kinds"])
    none, _, model = found["drafters"]
    assert none["memory_bytes"] == 0 and model["memory_bytes"] > 2_000_000
    assert none["kinds"][PROSE]["acceptance"] is None and model["kinds"][PROSE]["acceptance"] > 0
    assert found["environment"]["threads"] == torch.get_num_threads()
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.usefixtures("few")
def test_an_output_that_differs_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    right: Callable[..., Any] = measure.call

    def wrong(models: Models, option: Option, batch: Any, new_tokens: int, **more: Any) -> Any:
        output = right(models, option, batch, new_tokens, **more)
        if option.speculator is not None:
            output[:, batch.input_ids.shape[1] + 2] += 1
        return output

    monkeypatch.setattr(measure, "call", wrong)
    assert main(["bench", "--all-drafters", *SMALL]) == 1
    assert "DIFFERENT: prompt_lookup" in capsys.readouterr().out


class Refusing(Drafter):
    """Finds out at set-up that it cannot serve."""

    def setup(self) -> None:
        raise UnsupportedError("not on this host; choose another.")


def test_one_that_is_refused_at_set_up_is_not_available(models: Models) -> None:
    run = object.__new__(comparison.Comparison)
    run.models, run.new_tokens, run.memory, run.absent = models, 4, {}, []
    run.arguments = type("Arguments", (), {"quiet": True})()
    able = Contender("none", OURS, [Option("", {"assistant": Speculator(drafter="none")})])
    unable = Contender("refusing", OURS, [Option("", {"assistant": Speculator(drafter=Refusing())})])
    assert run._rehearsed([unable, able], Text("text", (5, 6, 7), 0.0)) == [able]
    assert [(one.name, one.why) for one in run.absent] == [("refusing", "not on this host; choose another.")]
    assert run.memory == {("none", ""): 0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--all-drafters", "--goals"], "--all-drafters and --goals"),
        (["--all-drafters", "--setups", "plain"], "--all-drafters and --setups"),
        (["--all-drafters", "--batch", "2"], "batch 1"),
        (["--all-drafters", "--context", "64,128"], "one --context"),
        (["--all-drafters", "--json", "/no/such/folder/x.json"], "no folder /no/such/folder"),
        (["--plot", "x.png"], "--all-drafters"),
        (["--all-drafters", "--context", "16384"], "exceed"),
    ],
)
def test_what_does_not_go_together_is_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *arguments, "--quiet"]) == 2
    assert message in capsys.readouterr().err


def test_another_model_than_the_pair_can_be_compared(
    tmp_path: Path,
    fp32: TinyModels,
    tokenizer: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fp32.target.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    monkeypatch.setattr(comparison_drafters, "ENTRIES", tuple(e for e in ENTRIES if e.name in ("none", "model")))
    monkeypatch.setattr(comparison_texts, "PLACES", (0.5,))
    assert main(["bench", "--all-drafters", "--model", str(tmp_path / "model"), *SMALL]) == 0
    assert "needs a draft model" in capsys.readouterr().out
