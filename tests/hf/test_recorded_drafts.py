"""Recorded drafts of a model with a cache of its own, with a stand-in for CUDA graphs (recorded_ops.py).

Verification makes the output right whatever was proposed, so what is compared is what was proposed, round by round.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from generate_tools import VOCAB, Models, disturbed, prompt, same, tiny
from recorded_tools import as_eagerly, record_on_a_cpu, speculated
from test_translation import TARGET_WORDS, permuted, words

from specplug import Batch, Speculator
from specplug.controllers import Controller
from specplug.controllers.base import Plan, planned
from specplug.drafters import LayerSkip
from specplug.host import SkippedLayers
from specplug.kv_policies import Streaming
from specplug_hf import generation, prefill
from specplug_hf.graphs import rounds
from specplug_hf.graphs.drafts import RecordedDraft, why_eager_draft
from specplug_hf.graphs.graphs import WORTH
from specplug_hf.paged.store import PAGE, PagedStore
from specplug_hf.runners import ModelRunner
from specplug_hf.runners.block import next_block
from specplug_hf.translation import TranslatedDraft

NEW = 48
WINDOW = Streaming(2, 5)
CHAIN = "chain:length=3"
SELF: dict[str, Any] = {"tree": CHAIN, "controller": "fixed", "kernel": "paged", "seed": 5}
SKIPPING = LayerSkip(layers=SkippedLayers(attention=frozenset({1})))


@pytest.fixture(scope="module")
def models() -> Models:
    target = tiny(dtype="float64")
    return Models(target, disturbed(target, 0.05), tiny(seed=5, dtype="float64"))


def drafting(models: Models, tree: str = CHAIN, **more: Any) -> Speculator:
    """A draft model over a window of its own paged cache."""
    options = {"draft_model": models.draft, "kv_policy": WINDOW, "controller": "fixed", "seed": 5} | more
    return Speculator(drafter="model", tree=tree, kernel="paged", **options)


def sampled(rows: int, new_tokens: int) -> dict[str, Any]:
    """A call that accepts more than greedy decoding would of a draft with so small a window; its last trees are not cut."""
    return {**prompt(rows), "max_new_tokens": new_tokens, "do_sample": True}


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("tree", ["chain:length=1", CHAIN, "sequoia:size=7,depth=3", "dynamic:size=5,depth=3"])
@pytest.mark.parametrize("draws", [False, True], ids=["greedy", "sampled"])
def test_replays_propose_the_same(
    models: Models, monkeypatch: pytest.MonkeyPatch, tree: str, draws: bool, rows: int
) -> None:
    call = {**prompt(rows, "left"), "max_new_tokens": NEW, "do_sample": draws}
    if draws:
        call["temperature"] = 0.7
    ran = as_eagerly(models, monkeypatch, drafting(models, tree), **call)
    if not draws:
        same(ran.output, models.target.generate(**call))
    assert ran.replays["draft"] > 4 and ran.replays["verify"] > 4


@pytest.mark.parametrize(("tree", "more"), [("chain:length=2", 2), ("dynamic:size=5,depth=3", 3)])
def test_rows_with_little_and_with_more_to_read_are_replayed_together(
    models: Models, monkeypatch: pytest.MonkeyPatch, tree: str, more: int
) -> None:
    """A row whose whole tree was accepted has not read the last of it; of a tree that was grown nothing was kept."""
    seen: list[tuple[int, ...]] = []
    replayed = ModelRunner.replayed

    def noting(self: ModelRunner, drafted: Any) -> None:
        _, counts = self._unread()
        seen.append(tuple(counts))
        replayed(self, drafted)

    monkeypatch.setattr(ModelRunner, "replayed", noting)
    spec = drafting(models, tree, draft_model=models.target, kv_policy=Streaming(2, 28))  # is accepted often
    ran = as_eagerly(models, monkeypatch, spec, **sampled(3, 2 * NEW), temperature=0.1)
    assert len(seen) == ran.replays["draft"] > 4
    assert {1, more} <= {count for counts in seen for count in counts} and any(len(set(counts)) > 1 for counts in seen)


def test_recorded_forwards_take_a_kernel_that_can_be_recorded(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(PagedStore, "recorded_kernel", property(lambda store: asked.append(store) or "torch"))
    record_on_a_cpu(monkeypatch)
    ran = speculated(models, drafting(models), **prompt(1), max_new_tokens=NEW)
    (runner,) = ran.host.runners
    assert {id(store) for store in asked} == {id(runner.store), id(ran.host.store)}


def test_rows_that_leave_begin_new_recordings(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    call = {**prompt(4), "max_new_tokens": 3 * PAGE}
    plain = models.target.generate(**prompt(4), max_new_tokens=40)
    call["eos_token_id"] = [int(plain[0, 20]), int(plain[1, 45])]
    ran = as_eagerly(models, monkeypatch, drafting(models), **call)
    assert len({rows for rows, *_ in ran.rounds}) > 1 and ran.replays["draft"] > 4


@pytest.mark.slow
@pytest.mark.parametrize("grows", ["draft", "target"])
def test_a_store_that_grows_begins_new_recordings(models: Models, monkeypatch: pytest.MonkeyPatch, grows: str) -> None:
    """What was recorded stands on memory that was left, be it the draft's alone."""

    def with_room(cache: Any, columns: int, slots: Any, room: int, release: bool, storage: Any) -> Any:
        return prefill.take_over(cache, columns, slots, 8 * PAGE, release, storage)

    # the other one has room enough
    monkeypatch.setattr(generation if grows == "draft" else prefill, "take_over_text", with_room)
    ran = as_eagerly(models, monkeypatch, drafting(models, "sequoia:size=7,depth=3"), **sampled(1, 4 * PAGE))
    (runner,) = ran.host.runners
    stores = {"draft": runner.store, "target": ran.host.store}
    assert {name for name, store in stores.items() if store.stamp > 1} == {grows}
    assert stores[grows].capacity >= 4 * PAGE and ran.replays["draft"] > 4 * WORTH


@pytest.mark.parametrize("drafter", ["model", "self"])
def test_a_text_that_fits_into_the_window_is_drafted_for_eagerly(
    models: Models, monkeypatch: pytest.MonkeyPatch, drafter: str
) -> None:
    """Its shapes grow with it; they stay the same from the first round on in which every row is longer."""
    wide: dict[str, Any] = {"kv_policy": Streaming(2, 30)}
    spec = drafting(models, **wide) if drafter == "model" else Speculator(drafter="self", **SELF, **wide)
    assert not as_eagerly(models, monkeypatch, spec, **sampled(2, 20)).replays["draft"]
    assert as_eagerly(models, monkeypatch, spec, **sampled(2, 2 * NEW)).replays["draft"]


@dataclass
class Pausing(Controller):
    """Nothing is drafted in three of every fourteen rounds, so that the draft has more to read than two tokens."""

    needs_baseline = True
    rounds: int = 0

    def plan(self, batch: Batch) -> Plan:
        self.rounds += 1
        return planned(self.arms[-1 if self.rounds % 14 > 10 else 0], batch)


def test_after_a_pause_it_catches_up_eagerly_and_goes_on_by_replays(
    models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = as_eagerly(models, monkeypatch, drafting(models, controller=Pausing()), **sampled(3, 2 * NEW))
    whole = [len(tokens[0]) for rows, tokens, _ in ran.rounds if len(rows) == 3]
    drafted = [i for i, width in enumerate(whole) if width > 1]
    late = [i for i in drafted if i and whole[i - 1] == 1]
    assert [i for i in drafted if "draft" not in ran.replayed[i]] == drafted[: 1 + WORTH] + late
    assert late and late[0] + WORTH < drafted[-1]


class Turns(Controller):
    """The arms in turn."""

    rounds = 0

    def plan(self, batch: Batch) -> Plan:
        self.rounds += 1
        return planned(self.arms[self.rounds % len(self.arms)], batch)


def test_trees_in_turn_keep_what_each_of_them_has_read(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a chain nothing has to be moved, of a tree the accepted path."""
    spec = drafting(models, tree="auto", controller=Turns())
    assert len({shape.is_chain for shape in spec.shapes[:-1]}) == 2
    ran = as_eagerly(models, monkeypatch, spec, **sampled(3, 3 * NEW))
    assert ran.replays["draft"] > 6


def test_a_draft_with_another_tokenizer_is_recorded(fp64: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    draft, tokenizer = permuted(fp64)
    translated = TranslatedDraft(draft, tokenizer, words(TARGET_WORDS))
    call = {**prompt(3), "max_new_tokens": NEW, "eos_token_id": None}
    ran = as_eagerly(fp64, monkeypatch, drafting(fp64, draft_model=translated), **call)
    same(ran.output, fp64.target.generate(**call))
    assert ran.replays["draft"] > 4


def test_a_draft_with_padding_ids_of_its_own_is_recorded(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    draft = disturbed(models.target, 0.05)
    draft.resize_token_embeddings(VOCAB + 1)
    ran = as_eagerly(models, monkeypatch, drafting(models, draft_model=draft), **prompt(2), max_new_tokens=NEW)
    assert ran.replays["draft"] > 4


def test_the_last_position_of_the_draft_is_not_left(monkeypatch: pytest.MonkeyPatch) -> None:
    target = tiny(dtype="float64", max_position_embeddings=64)
    models = Models(target, disturbed(target, 0.02), target)
    call = {**prompt(2), "max_new_tokens": 64 - prompt(2)["input_ids"].shape[1]}
    ran = as_eagerly(models, monkeypatch, drafting(models, "chain:length=5"), **call)
    same(ran.output, target.generate(**call))
    assert ran.replays["draft"]


def test_a_recording_that_fails_leaves_nothing_behind(
    models: Models, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """Not even when everything has run before it fails: the round is drafted once more, eagerly."""

    def refuses(function: Any) -> Any:
        function()
        raise RuntimeError("operation not permitted when stream is capturing")

    eager = speculated(models, drafting(models), **prompt(3), max_new_tokens=NEW)
    record_on_a_cpu(monkeypatch, refuses)
    with caplog.at_level(logging.WARNING, logger="specplug_hf"):
        ran = speculated(models, drafting(models), **prompt(3), max_new_tokens=NEW)
    assert ran.rounds == eager.rounds and not ran.replays
    assert len(caplog.records) == 2  # the draft, the verify


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ({"kv_policy": "full"}, "reads the whole context, which grows"),
        ({"kv_policy": "lambda:sink=2,window=5"}, "looks at the cache, or reads it turned"),
        ({"drafter": "model:stop=0.1"}, "waits for the device to see them"),
        ({"drafter": SKIPPING, "draft_model": None, "kv_policy": "auto"}, "only a model's and the whole target's"),
    ],
)
def test_drafts_that_are_not_recorded_say_why(
    models: Models, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], cause: str, caplog: Any
) -> None:
    record_on_a_cpu(monkeypatch)
    asked = {"drafter": "model", "draft_model": models.draft, "kv_policy": WINDOW} | options
    spec = Speculator(tree=CHAIN, controller="fixed", kernel="paged", **asked)
    with caplog.at_level(logging.INFO, logger="specplug_hf"):
        ran = speculated(models, spec, **prompt(2), max_new_tokens=24)
    same(ran.output, models.target.generate(**prompt(2), max_new_tokens=24))
    assert not ran.replays["draft"] and ran.replays["verify"]
    (said,) = [line for line in caplog.messages if "run eagerly" in line]
    assert cause in said


def test_layers_elsewhere_and_rows_in_no_pages_are_obstacles(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    record_on_a_cpu(monkeypatch)
    ran = speculated(models, drafting(models), **prompt(1), max_new_tokens=8)
    (runner,) = ran.host.runners
    drafter = drafting(models).drafters[0]
    drafter._runner = runner
    here = torch.device("cpu")
    assert why_eager_draft(drafter, here) is None
    assert "devices" in str(why_eager_draft(drafter, torch.device("meta")))
    monkeypatch.setattr(ModelRunner, "devices", {here, torch.device("meta")})
    assert "devices" in str(why_eager_draft(drafter, here))
    runner._selection = None
    assert "not paged" in str(why_eager_draft(drafter, here))


def test_a_drafter_with_several_trees_is_recorded_once(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    record_on_a_cpu(monkeypatch)
    spec = Speculator(drafter="self", kv_policy=WINDOW, controller="fixed", kernel="paged")
    installed: list[Any] = []
    monkeypatch.setattr(rounds, "RecordedDraft", lambda *args: installed.append(args) or RecordedDraft(*args))
    ran = speculated(models, spec, **prompt(2), max_new_tokens=NEW)
    assert len(spec.drafters[0].shapes()) > 1
    assert len(installed) == 1 and ran.replays["draft"] > 4


def test_nothing_is_read_behind_a_text() -> None:
    """What stands there is padding, which may be no token at all."""
    history = torch.tensor([[9, 5, 6, 7, -1, -1], [1, 2, 3, 4, 5, -1], [1, 2, 3, 4, 5, 6]])
    block = next_block(history, [1, 0, 0], [2, 3, 6], [1, 2, 0], 3)
    assert block.tokens.tolist() == [[7, 7, 7], [4, 5, 5], [6, 6, 6]]
    assert block.places.tolist() == [2, 3, 6] and block.counts.tolist() == [1, 2, 0]
    assert block.positions.tolist() == [[2, 3, 4], [3, 4, 5], [6, 7, 8]]
