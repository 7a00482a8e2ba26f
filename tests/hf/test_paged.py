"""`kernel="paged"`: the cache in pages, as the kernels of GPUs read it, with those kernels' definition in torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import NAMED, VARIANTS, family_names, run
from generate_tools import Models, disturbed, prompt, same, same_cache, tiny

from specplug import Speculator, UnsupportedError
from specplug.errors import UnknownNameError
from specplug.kv_policies import Streaming
from specplug.tree import fill_shape
from specplug.trees import Sequoia
from specplug_hf.draft import node_forward
from specplug_hf.generation import prepare
from specplug_hf.paged import PagedStep, PagedStore
from specplug_hf.paged.store import PAGE
from specplug_hf.views import FullView, RingView

NEW = 24
SETUPS: dict[str, dict[str, Any]] = {
    "none": {"drafter": "none"},
    "lookup": {"drafter": "prompt_lookup", "tree": "chain:length=4"},
    "self": {"drafter": "self", "kv_policy": Streaming(2, 5), "tree": "sequoia:size=7,depth=3"},
    "self, all": {"drafter": "self", "kv_policy": "full", "tree": "kary:branch=2,depth=2"},
    "model": {"drafter": "model", "tree": "sequoia:size=6,depth=3"},
    "model, window": {"drafter": "model", "kv_policy": Streaming(3, 6), "tree": "chain:length=3"},
    "dynamic": {"drafter": "model", "tree": "dynamic:size=6,depth=3"},
    "auto": {"controller": "goodput"},
}


@pytest.fixture(scope="module")
def models() -> Models:
    target = tiny(dtype="float64")
    return Models(target, disturbed(target, 0.05), target)


def paged(models: Models, setup: str, **more: Any) -> Speculator:
    options = {"controller": "fixed"} | SETUPS[setup] | more
    if "model" in setup or setup in ("dynamic", "auto"):
        options["draft_model"] = models.draft
    return Speculator(kernel="paged", **options)


def stores_of(models: Models, spec: Speculator, **call: Any) -> list[Any]:
    """The stores of a call's last round: the target's, then those of its drafts."""
    found: list[Any] = []

    def watched(model: Any, input_ids: Any, **rest: Any) -> Any:
        generation = prepare(model, input_ids, spec, **rest)
        for _ in generation.rounds():
            host = generation.host
            found[:] = [host.store, *(runner.store for runner in host.runners if hasattr(runner, "store"))]
        return generation.finish()

    models.target.generate(**call, custom_generate=watched)
    return found


@pytest.mark.parametrize("padding", ["none", "left"])
@pytest.mark.parametrize("setup", SETUPS)
def test_a_paged_cache_changes_nothing(models: Models, setup: str, padding: str) -> None:
    call = {**prompt(4, padding), "max_new_tokens": NEW}
    same(models.target.generate(**call, assistant=paged(models, setup)), models.target.generate(**call))


def test_sampled_rows_draw_the_same_over_pages_and_rows(models: Models) -> None:
    call = {**prompt(3, "left"), "max_new_tokens": NEW, "do_sample": True}
    outputs = []
    for kernel in ("auto", "paged"):
        spec = Speculator(drafter="self", kv_policy=Streaming(2, 5), controller="fixed", kernel=kernel, seed=7)
        outputs.append(models.target.generate(**call, assistant=spec))
    same(outputs[1], outputs[0])


def test_all_stores_are_paged_and_a_window_is_not_copied(models: Models) -> None:
    call = {**prompt(3), "max_new_tokens": NEW}
    target, drafting = stores_of(models, paged(models, "self"), **call)
    assert isinstance(target, PagedStore) and drafting is target
    target, drafting = stores_of(models, paged(models, "model, window"), **call)
    assert isinstance(target, PagedStore) and isinstance(drafting, PagedStore) and drafting is not target


def test_rows_that_end_leave_the_others_where_they_are(models: Models) -> None:
    call = {**prompt(4), "max_new_tokens": NEW}
    plain = models.target.generate(**call)
    ends = [int(token) for token in plain[:3, 14]]  # three rows end early, at one or another of these
    call["eos_token_id"] = ends
    same(models.target.generate(**call, assistant=paged(models, "model")), models.target.generate(**call))
    store = PagedStore([(torch.randn(4, 2, 5, 3), torch.randn(4, 2, 5, 3))], PAGE, "torch")
    before = store.keys[0].data_ptr()
    store.keep_rows([1, 3])
    store.keep_rows([1])
    assert store.regions == [3] and store.keys[0].data_ptr() == before
    assert store.row(0)[0][0].data_ptr() == store.keys[0][3].data_ptr()


def test_a_long_generation_outgrows_the_first_pages(models: Models) -> None:
    call = {**prompt(2), "max_new_tokens": 2 * PAGE}
    same(models.target.generate(**call, assistant=paged(models, "self")), models.target.generate(**call))


def test_pages_are_added_up_to_what_is_expected() -> None:
    store = PagedStore([(torch.randn(2, 2, 5, 3), torch.randn(2, 2, 5, 3))], PAGE, "torch")
    store.expect(5 * PAGE + 1)
    for slots, pages in ((PAGE, 1), (PAGE + 1, 2), (3 * PAGE, 4), (4 * PAGE + 1, 6), (6 * PAGE + 1, 8)):
        stamp = store.stamp
        store.reserve(slots)
        assert store.capacity == pages * PAGE and store.keys[0].shape[2] == pages * PAGE
        assert (store.stamp != stamp) == (pages > 1)
        assert len(store.pages(torch.device("cpu"))[1]) == 2 * pages


@pytest.mark.parametrize("setup", ["self", "model"])
def test_the_returned_cache_is_that_of_plain_generation(models: Models, setup: str) -> None:
    call = {**prompt(3, "left"), "max_new_tokens": NEW, "return_dict_in_generate": True}
    ours = models.target.generate(**call, assistant=paged(models, setup))
    plain = models.target.generate(**call)
    same(ours.sequences, plain.sequences)
    mask = torch.cat([call["attention_mask"], torch.ones(3, NEW - 1, dtype=torch.int64)], 1)
    same_cache(ours.past_key_values, plain.past_key_values, mask)


def test_a_prompt_with_holes_keeps_a_place_for_every_row(models: Models) -> None:
    call = {**prompt(3, "holes"), "max_new_tokens": NEW}
    same(models.target.generate(**call, assistant=paged(models, "self")), models.target.generate(**call))
    target, drafting = stores_of(models, paged(models, "self"), **call)
    assert not isinstance(target, PagedStore) and not isinstance(drafting, PagedStore)


@pytest.mark.parametrize("lengths", [[5], [30, 9], [4, 70, 12]])
@pytest.mark.parametrize("part", [(0, 8), (1, 3), (3, 8)])
def test_a_selection_is_a_page_table_of_sinks_window_and_nodes(lengths: list[int], part: tuple[int, int]) -> None:
    ring, shape = RingView(2, 6), Sequoia(7, 3).build()
    rows, (start, stop) = len(lengths), part
    store = PagedStore([(torch.randn(rows, 2, max(lengths), 4),) * 2], max(lengths), "torch")
    trees = fill_shape(shape, torch.zeros(rows, shape.num_nodes, dtype=torch.int64))
    step = store.step(FullView(), lengths, trees.ancestors, trees.depths, start, stop, selection=ring)
    assert isinstance(step, PagedStep)
    table = step._rows
    for row, length in enumerate(lengths):
        kept = {*range(min(2, length)), *range(max(0, length - 6), length)}
        expected = [row * store.capacity + p for p in (*sorted(kept), *range(length, length + stop))]
        if step.page > 1:  # nothing to leave out
            assert max(lengths) <= ring.size
            continue
        begin, filled = int(table.page_indptr[row]), int(table.lengths[row])
        assert table.page_indices[begin : begin + filled + stop].tolist() == expected
        assert step.write_on(table.lengths.device)[row].tolist() == expected[-(stop - start) :] or start == 0
        assert step.write_on(table.lengths.device)[row].tolist() == expected[filled + start : filled + stop]


REFUSED = {
    "deepseek_v3": "cannot read a token tree",  # shapes what the cache hands it
    "doge": "builds on its mask",
    "falcon": "registry",
    "falcon:new": "registry",
    "llama4_text": "chunked_attention",
    "qwen2_moe": "a pattern that its layers do not tell",
    "stablelm": "registry",
}


@pytest.mark.parametrize("family", [name for name in NAMED if VARIANTS.get(name, (name,))[0] in family_names()])
def test_families_over_pages(family: str) -> None:
    outcome = run(family, kernel="paged")
    assert outcome.status in ("served", "refused"), outcome.detail
    if family in REFUSED:
        assert outcome.status == "refused" and REFUSED[family] in outcome.detail
        return
    assert outcome.status == "served" and outcome.accepted > 1, outcome.detail
    assert outcome.error < 1e-4


def test_what_cannot_be_paged_is_refused_by_name(models: Models) -> None:
    call = {**prompt(1), "max_new_tokens": 2}
    spec = paged(models, "none")
    with pytest.raises(UnsupportedError, match="returns no attention weights"):
        models.target.generate(**call, assistant=spec, return_dict_in_generate=True, output_attentions=True)
    with pytest.raises(UnknownNameError, match="paged"):
        Speculator(kernel="pagd")


def test_a_pattern_that_no_layer_tells_is_noticed(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = node_forward(models.target, "paged")
    store = forward.storage([(torch.zeros(1, 2, 4, 4, dtype=torch.float64),) * 2], PAGE)
    trees = fill_shape(Sequoia(2, 1).build(), torch.zeros(1, 3, dtype=torch.int64))
    step = store.step(FullView(), [4], trees.ancestors, trees.depths, 0, 3)
    step.check()
    step.patterned = True
    with pytest.raises(UnsupportedError, match="pattern"):
        step.check()
    step.windowed = True
    step.check()
