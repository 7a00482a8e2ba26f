"""What a policy chooses a layer and KV head: that the draft reads just this, that it is chosen anew, and that the output stays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from generate_tools import Models, prompt, same
from torch import Tensor

from specplug import Speculator, UnsupportedError
from specplug.kv_policies import Chooser, ChoosingPolicy, KVPolicy, KVSelection, LayerContext
from specplug_hf.generation import prepare
from specplug_hf.views import RingView

NEW, LENGTH = 18, 23


@dataclass(frozen=True)
class Scattered(ChoosingPolicy):
    """Chooses by the keys themselves: the shortest ones, which differ from head to head and layer to layer."""

    budget: int = 10
    window: int = 4
    refresh: int = 0
    queries = 3

    def open(self) -> Chooser:
        return _Shortest(self.anchors)


class _Shortest:
    def __init__(self, count: int) -> None:
        self.count, self.calls = count, 0
        self.seen: list[LayerContext] = []

    def choose(self, context: LayerContext) -> Tensor:
        self.calls += context.layer == 0
        self.seen.append(context)
        return shortest(context.keys, context.choices, self.count)

    def keep_rows(self, rows: Sequence[int]) -> None:
        self.kept = list(rows)


def shortest(keys: Tensor, choices: Tensor, count: int) -> Tensor:
    """[B, H, count]: the positions of the shortest keys below each row's `choices`, the last one first; -1 = none."""
    found = torch.full((*keys.shape[:2], count), -1)
    for row in range(len(keys)):
        for head in range(keys.shape[1]):
            order = keys[row, head, : int(choices[row])].norm(dim=-1).argsort()[:count].flip(0)
            found[row, head, : len(order)] = order
    return found


def watched(models: Models, spec: Speculator, look: Any, **call: Any) -> Tensor:
    """`generate`, with `look(host)` after every round."""

    def run(model: Any, input_ids: Tensor, **rest: Any) -> Any:
        generation = prepare(model, input_ids, spec, **rest)
        for _ in generation.rounds():
            look(generation.host)
        return generation.finish()

    return models.target.generate(**call, custom_generate=run)


@pytest.mark.parametrize("drafter", ["self", "model"])
@pytest.mark.parametrize("refresh", [0, 1, 3])
@pytest.mark.parametrize("kernel", ["auto", "paged"])
@pytest.mark.parametrize(("rows", "padding"), [(1, "none"), (3, "left")])
def test_the_output_is_plain(fp64: Models, drafter: str, refresh: int, kernel: str, rows: int, padding: str) -> None:
    inputs = prompt(rows, padding, LENGTH)
    draft = {"draft_model": fp64.draft} if drafter == "model" else {}
    spec = Speculator(
        drafter=drafter, kv_policy=Scattered(refresh=refresh), tree="sequoia:size=6,depth=3", controller="fixed",
        kernel=kernel, **draft,
    )  # fmt: skip
    plain = fp64.target.generate(**inputs, max_new_tokens=NEW)
    same(fp64.target.generate(**inputs, max_new_tokens=NEW, assistant=spec), plain)
    assert spec.stats.accepted > 0


@pytest.mark.parametrize("kernel", ["auto", "paged"])
def test_the_draft_holds_what_was_chosen_and_the_window(fp64: Models, kernel: str) -> None:
    """Rows of 21 to 23 tokens choose at once, and again in every third round; the window follows the text."""
    held = []

    def look(host: Any) -> None:
        sparse = host.runners[0]._sparse
        if sparse is None or not host.rows:
            return
        assert max(sparse._rounds) <= 3
        for place, copied in enumerate(sparse.copied):
            for layer in range(host.store.num_layers):
                keys, values = host.store.columns(layer, copied)
                chosen_at = chosen[place] if sparse._rounds[place] > 1 else copied
                choices = torch.tensor([chosen_at - sparse.ring.window])
                picked = shortest(keys[place : place + 1], choices, sparse.ring.sink)[0]
                # the draft has read the root besides, at the place of the oldest
                window = torch.arange(copied + 1 - sparse.ring.window, copied)
                for mine, theirs in ((sparse.store.keys, keys), (sparse.store.values, values)):
                    for head in range(keys.shape[1]):
                        own = mine[layer][place, head]
                        assert torch.equal(own[: sparse.ring.sink], theirs[place, head, picked[head]])
                        kept = sparse.ring.slots(window)
                        assert torch.equal(own[kept], theirs[place, head, window])
        if sparse._rounds[0] == 1:
            chosen[:] = sparse.copied
        held.append(sparse._rounds[0])

    chosen: list[int] = []
    spec = Speculator(
        drafter="self", kv_policy=Scattered(refresh=3), tree="chain:length=3", controller="fixed", kernel=kernel
    )
    watched(fp64, spec, look, **prompt(3, "left", LENGTH), max_new_tokens=NEW, eos_token_id=None)
    assert len(held) > 4 and held[:4] == [1, 2, 3, 1]


def test_short_rows_read_everything_until_they_have_outgrown_the_budget(fp64: Models) -> None:
    """Row 0 has ten tokens less than row 1: its first positions stay in their places while the other's make way."""
    inputs = prompt(2, "none", LENGTH)
    inputs["attention_mask"][0, :14] = 0
    inputs["input_ids"][0, :14] = 0
    states = []

    def look(host: Any) -> None:
        sparse = host.runners[0]._sparse
        if sparse is None or len(host.rows) < 2:
            return
        states.append(list(sparse._chosen))
        first = min(sparse.ring.sink, sparse.copied[0])
        if not sparse._chosen[0]:
            keys, _ = host.store.columns(0, first)
            assert torch.equal(sparse.store.keys[0][0, :, :first], keys[0])

    spec = Speculator(drafter="self", kv_policy=Scattered(), tree="chain:length=2", controller="fixed")
    plain = fp64.target.generate(**inputs, max_new_tokens=NEW, eos_token_id=None)
    same(watched(fp64, spec, look, **inputs, max_new_tokens=NEW, eos_token_id=None), plain)
    assert states[0] == [False, True] and states[-1] == [True, True]


def test_a_position_that_was_not_chosen_is_not_read(fp64: Models) -> None:
    """With other keys in all places but the chosen ones and the window, the draft proposes the same."""
    inputs = prompt(1, "none", LENGTH)

    def proposals(spoil: bool) -> list[Tensor]:
        found: list[Tensor] = []

        def run(model: Any, input_ids: Tensor, **rest: Any) -> Any:
            generation = prepare(model, input_ids, spec, **rest)
            for index, done in enumerate(generation.rounds()):
                found.append(done.trees.tokens)
                if spoil and index == 0:
                    host = generation.host
                    unread = torch.ones(LENGTH, dtype=torch.bool)
                    unread[-4:] = False  # the window; what was chosen has been copied
                    for layer in range(host.store.num_layers):
                        host.store.columns(layer, LENGTH)[0][:, :, unread] += 100.0
                if index == 1:
                    break
            return generation.finish()

        spec = Speculator(drafter="self", kv_policy=Scattered(), tree="chain:length=2", controller="fixed")
        fp64.target.generate(**inputs, max_new_tokens=NEW, eos_token_id=None, custom_generate=run)
        return found

    clean, spoilt = proposals(False), proposals(True)
    assert torch.equal(clean[0], spoilt[0])
    # the target has changed, so the root may have: what matters is that the draft has not looked there
    if torch.equal(clean[1][:, 0], spoilt[1][:, 0]):
        assert torch.equal(clean[1], spoilt[1])


@dataclass(frozen=True)
class Holes(KVPolicy):
    """Scattered positions, without looking."""

    def select(self, lengths: Tensor) -> KVSelection:
        return KVSelection(torch.tensor([0, 2, 5])[None, None, None], 4)


def test_scattered_positions_without_looking_are_refused(fp64: Models) -> None:
    spec = Speculator(drafter="self", kv_policy=Holes(), controller="fixed")
    with pytest.raises(UnsupportedError, match="Holes"):
        fp64.target.generate(**prompt(1), max_new_tokens=2, assistant=spec)


def test_a_model_whose_attention_cannot_be_watched_is_refused(fp64: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(fp64.target), "_supports_attention_backend", False)
    spec = Speculator(drafter="self", kv_policy=Scattered(), controller="fixed")
    with pytest.raises(UnsupportedError, match="queries"):
        fp64.target.generate(**prompt(1), max_new_tokens=2, assistant=spec)


def test_rows_that_leave_take_their_anchors_along(fp64: Models) -> None:
    """Rows end at different times, in the middle of the batch too; the others go on with what is theirs."""
    inputs = prompt(4, "left", LENGTH)
    plain = fp64.target.generate(**inputs, max_new_tokens=NEW)
    for eos in plain[:, LENGTH + 3].tolist():
        call = {"max_new_tokens": NEW, "eos_token_id": eos, "pad_token_id": 0}
        expected = fp64.target.generate(**inputs, **call)
        for drafter, more in (("self", {}), ("model", {"draft_model": fp64.draft})):
            spec = Speculator(
                drafter=drafter, kv_policy=Scattered(refresh=2), tree="chain:length=3", controller="fixed", **more
            )
            same(fp64.target.generate(**inputs, **call, assistant=spec), expected)


def test_the_view_of_a_choosing_policy_is_a_ring() -> None:
    from specplug_hf.views import view_of

    view = view_of(Scattered())
    assert isinstance(view, RingView) and (view.sink, view.window) == (6, 4)
