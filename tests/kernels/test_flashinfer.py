"""FlashInfer's three paths through a stand-in for the package (`fake_flashinfer.py`), against the torch backend.

What the stand-in cannot show, the real kernels', is in `test_flashinfer_gpu.py`; whether its signatures are the real ones, in
`test_flashinfer_package.py`.
"""

from __future__ import annotations

import gc
import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import fake_flashinfer
import flashinfer_tools
import paged_tools
import pytest
import torch
from flashinfer_tools import PATHS, check, layer, make_case, plan
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from specplug_kernels import PagedShape, ScoreRule, paged_rows
from specplug_kernels import flashinfer_paths as paths
from specplug_kernels import flashinfer_wrappers as wrappers
from specplug_kernels.flashinfer_graph import FlashInferGraph
from specplug_kernels.flashinfer_layout import Span, committed_pages, slot_table
from specplug_kernels.flashinfer_tensors import flat_queries, flat_slots, slots_a_page
from specplug_kernels.paged_tree_attention_flashinfer import why_not_flashinfer
from specplug_kernels.paged_tree_attention_torch import visible_columns


@pytest.fixture(autouse=True, scope="module")
def _stand_in() -> Iterator[None]:
    """The stand-in is `flashinfer`, on a CPU that says it has as many processors as an H200."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "flashinfer", fake_flashinfer)
        patch.setattr(paths, "DEVICE_TYPES", ("cpu",))
        patch.setattr(wrappers, "processors", lambda device: fake_flashinfer.PROCESSORS)
        patch.setattr(wrappers, "_idle", {})
        patch.setattr(wrappers, "_workspaces", {})
        yield


# --- numbers


@settings(max_examples=150)
@given(case=flashinfer_tools.cases(longest=90), path=st.sampled_from(PATHS))
def test_every_path_is_what_torch_computes(case: paged_tools.Case, path: str) -> None:
    """Slots that nobody sees hold NaN, and pages in which nobody sees anything do not exist."""
    if not flashinfer_tools.serves(path, case):
        path = "merge"
    check(case, layer(plan(case, path), case))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("nodes", [1, 31, 33, 64])
def test_trees_of_every_size(path: str, nodes: int) -> None:
    case = make_case([70, 3, 0, 16], nodes, groups=2, kv_heads=1)
    check(case, layer(plan(case, path), case))


@pytest.mark.parametrize("path", ["merge", "mask"])
def test_more_packed_rows_than_a_tile_holds(path: str) -> None:
    case = make_case([40, 7], 70, groups=4, kv_heads=1)
    check(case, layer(plan(case, path), case))


@pytest.mark.parametrize("path", ["merge", "mask"])
def test_levels_of_a_draft(path: str) -> None:
    """Each level asks while the nodes behind it are not written yet."""
    case = make_case([33, 0, 5], ancestors=paged_tools.levelled_ancestors((1, 2, 3, 2)).expand(3, -1, -1), nodes=8)
    for first, stop in ((0, 1), (1, 3), (3, 6), (6, 8)):
        part = case.level(first, stop)
        check(part, layer(plan(part, path), part))


@pytest.fixture(params=[-5e4, -torch.inf], ids=["as in 0.6", "as in 0.7"])
def masked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> float:
    """What a hidden score becomes."""
    monkeypatch.setattr(fake_flashinfer, "MASKED", request.param)
    return request.param


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("window", [None, 2])
def test_a_node_that_sees_nothing_gets_zeros(path: str, window: int | None, masked: float) -> None:
    """A padding node that does not even see itself, without committed tokens."""
    ancestors = torch.tensor([[[True, False, False], [True, True, False], [False, False, False]]])
    case = make_case([0, 9], 3, ancestors=ancestors, window=window)
    out, lse = result = layer(plan(case, path), case)
    assert out[0, 2].eq(0).all() and lse[0, 2].eq(-torch.inf).all()
    check(case, result)


@pytest.mark.parametrize("path", PATHS)
def test_a_node_with_nothing_in_its_window_gets_zeros(path: str, masked: float) -> None:
    """Padding nodes too deep for their window to reach the committed tokens; a row of them needs no page at all."""
    padding, nobody = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 0, 0]]).bool(), torch.zeros(3, 3, dtype=torch.bool)
    case = make_case([5, 9], 3, ancestors=torch.stack([padding, nobody]), window=2)
    case.page_indices[int(case.page_indptr[1]) :] = paged_tools.NOT_A_PAGE
    depths = torch.tensor([[0, 1, 3], [3, 4, 5]], dtype=torch.int32)
    rows = replace(case.rows(lengths_host=[5, 9]), depths=depths)
    out, lse = result = layer(plan(case, path, rows), case)
    for nothing in ((0, 2), (1, slice(None))):
        assert out[nothing].eq(0).all() and lse[nothing].eq(-torch.inf).all()
    check(case, result, rows=rows)


def behind_a_bad_page(case: paged_tools.Case) -> paged_tools.Case:
    """The same, with a first page that nobody may read."""
    pools = (torch.cat([torch.full_like(pool[:1], torch.nan), pool]) for pool in (case.key_pages, case.value_pages))
    keys, values = pools
    return replace(case, key_pages=keys, value_pages=values, page_indices=case.page_indices + 1)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("window", [None, 1, 4])
def test_rows_of_padding_see_their_committed_tokens_or_nothing(path: str, window: int | None, masked: float) -> None:
    """No node of theirs is seen, so none need have been written, and without a token no page need be listed."""
    tree = torch.ones(3, 3, dtype=torch.bool).tril()
    ancestors = torch.stack([torch.zeros_like(tree), tree, torch.zeros_like(tree)])
    case = behind_a_bad_page(make_case([6, 9, 0], 3, ancestors=ancestors, window=window))
    check(case, layer(plan(case, path), case))


@pytest.mark.parametrize("path", PATHS)
def test_nothing_is_modified_and_batches_may_be_empty(path: str) -> None:
    case = make_case([20, 3], window=7)
    given = [t.clone() for t in (case.query, case.key_pages, case.value_pages, case.page_indices, case.lengths)]
    layer(plan(case, path), case)
    for before, after in zip(
        given, (case.query, case.key_pages, case.value_pages, case.page_indices, case.lengths), strict=True
    ):
        torch.testing.assert_close(before, after, equal_nan=True, atol=0, rtol=0)
    nobody = torch.zeros(0, dtype=torch.int32)
    rows = paged_rows(torch.zeros(1, dtype=torch.int32), nobody, nobody, torch.ones(1, 5, 5, dtype=torch.bool).tril())
    out, lse = plan(case, path, rows)(case.query[:0], case.key_pages, case.value_pages, case.rule)
    assert out.shape == (0, 5, 6, 64) and lse.shape == (0, 5, 6)


def test_heads_that_do_not_fit_a_block_are_merged() -> None:
    case = make_case([19, 2], 3, kv_heads=3, groups=16, dim=256, page=4)  # 48 heads; a block takes 32
    check(case, layer(plan(case, "merge"), case))


@pytest.mark.parametrize("path", PATHS)
def test_scores_of_any_size(path: str) -> None:
    """Near the largest that half precision tells apart, where a merge must not overflow."""
    case = make_case([40, 3], 3, kv_heads=1, dtype=torch.float16)
    case = replace(case, rule=ScoreRule(scale=3.0))
    check(case, layer(plan(case, path), case), slack=2e-3)


# --- tensors


def interleaved(pool: torch.Tensor, other: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    both = torch.stack([pool, other], 1)  # [pages, 2, page, Hkv, D]
    return both[:, 0], both[:, 1]


def heads_first(*pools: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return tuple(pool.transpose(1, 2).contiguous().transpose(1, 2) for pool in pools)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("form", [interleaved, heads_first])
@pytest.mark.parametrize("page", [1, 4])
def test_pools_that_hold_other_things_too(path: str, form: object, page: int) -> None:
    case = make_case([30, 5], 4, page=page)
    keys, values = form(case.key_pages, case.value_pages)
    assert torch.equal(flat_slots(keys).nan_to_num()[:, 0][: page - 1], keys.nan_to_num()[0, : page - 1])
    case = replace(case, key_pages=keys, value_pages=values)
    check(case, layer(plan(case, path), case))


def test_layers_with_pools_of_another_form_share_a_plan() -> None:
    case = make_case([30, 5], 4)
    attention = plan(case, "merge")
    check(case, layer(attention, case))
    keys, values = interleaved(case.key_pages, case.value_pages)
    other = replace(case, key_pages=keys, value_pages=values)
    check(other, layer(attention, other))


def test_pools_that_do_not_fit_are_named() -> None:
    case = make_case([30, 5], 4)
    attention, keys, values = plan(case, "merge"), case.key_pages, case.value_pages
    pages, size, heads, dim = keys.shape
    wide = torch.zeros(pages, size, heads, dim + 8, dtype=keys.dtype)
    odd = torch.zeros(pages * (size * heads * dim + 8), dtype=keys.dtype)
    apart = odd.as_strided(keys.shape, (size * heads * dim + 8, heads * dim, dim, 1))
    for wrong, phrase in (
        ((keys[..., :32], values[..., :32]), "with heads of 64"),
        ((keys, values[..., :32]), "keys and values must be alike"),
        ((keys.float(), values), "planned for torch.bfloat16"),
        ((keys[:, :8], values[:, :8]), "page size"),
        ((keys, wide[..., :dim]), "same strides"),
        ((wide[..., 1 : dim + 1], wide[..., 1 : dim + 1]), "multiples of 16 bytes"),
        ((apart, apart), "whole slots apart"),
        ((keys.transpose(2, 3).contiguous().transpose(2, 3),) * 2, "last dimension must be contiguous"),
        ((torch.empty(2**27, 16, 2, 64, dtype=keys.dtype, device="meta"),) * 2, "32-bit"),
    ):
        assert phrase in attention.why_not(case.query, *wrong, case.rule)
    with pytest.raises(
        ValueError, match="flashinfer-merge cannot serve this layer: keys and values must have the same strides"
    ):
        attention(case.query, keys, wide[..., :dim], case.rule)
    with pytest.raises(ValueError, match="no sinks; kernel='torch' can"):
        attention(case.query, keys, values, ScoreRule(1.0, sinks=torch.zeros(6)))
    assert "query heads" in attention.why_not(case.query[:, :, :4], keys, values, case.rule)
    assert attention.why_not(case.query, keys, values, case.rule) is None


def test_queries_are_copied_only_if_they_must_be() -> None:
    query = torch.randn(2, 3, 4, 64)
    assert flat_queries(query).data_ptr() == query.data_ptr()
    whole = torch.randn(2, 3, 4, 128)
    assert flat_queries(whole[..., :64]).data_ptr() == whole.data_ptr()
    for strange in (query.transpose(2, 3).contiguous().transpose(2, 3), torch.randn(2, 3, 4, 65)[..., 1:]):
        assert torch.equal(flat_queries(strange), strange.flatten(0, 1)) and flat_queries(strange).is_contiguous()


# --- tables and masks


def bits_of(mask: torch.Tensor, start: int, count: int) -> list[bool]:
    return [bool(mask[start + place // 8] >> (place % 8) & 1) for place in range(count)]


@pytest.mark.parametrize(("span", "window"), [(Span(), None), (Span(tree_only=True), None), (Span(window=5), 5)])
def test_slots_and_bits_entry_by_entry(span: Span, window: int | None) -> None:
    case = make_case([9, 0, 17], 3, page=4, window=window)
    rows = case.rows()
    table, mask = slot_table(rows, tuple(case.lengths.tolist()), span, 4, 4)
    seen = visible_columns(rows, window)
    assert table.page_size == 1 and table.last_page_len.tolist() == [1, 1, 1]
    for row, length in enumerate(case.lengths.tolist()):
        first = int(span.first(torch.tensor(length)))
        entries = range(first, length + 3)
        assert int(table.indptr[row + 1] - table.indptr[row]) == len(entries)
        slots = dict(zip(entries, table.indices[int(table.indptr[row]) :].tolist(), strict=False))
        wanted = {entry for entry in entries if seen[row, :, entry].any()}
        for entry in wanted:
            page = case.page_indices[int(case.page_indptr[row]) + entry // 4]
            assert slots[entry] == int(page) * 4 + entry % 4
        assert {slots[entry] for entry in entries} == {slots[entry] for entry in wanted}  # the others read one of these
        got = bits_of(mask.bits, int(mask.indptr[row]), 3 * len(entries))
        assert got == seen[row, :, first : length + 3].flatten().tolist()
        assert int(mask.indptr[row + 1] - mask.indptr[row]) == -(-3 * len(entries) // 8)
    assert len(mask.bits) == int(mask.indptr[-1])


def test_committed_pages_end_with_the_committed_tokens() -> None:
    case = make_case([9, 0, 16], 3, page=4)
    table = committed_pages(case.rows(), (9, 0, 16), 4)
    assert table.indptr.tolist() == [0, 3, 3, 7] and table.last_page_len.tolist() == [1, 0, 4]
    starts = case.page_indptr.tolist()
    wanted = [*case.page_indices[starts[0] : starts[0] + 3], *case.page_indices[starts[2] : starts[2] + 4]]
    assert table.indices.tolist() == [int(page) for page in wanted] and table.indices.dtype == torch.int32


class NothingLookedAt(TorchDispatchMode):
    """Operations whose result, or its size, Python would have to wait for are errors inside it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "nonzero", "equal", "masked_select", "_unique2"), name
        return func(*args, **(kwargs or {}))


def test_planning_looks_at_nothing_on_the_device() -> None:
    case = make_case([9, 0, 17], 3, page=4)
    rows = case.rows(lengths_host=[9, 0, 17])
    with NothingLookedAt():
        for span in (Span(), Span(tree_only=True), Span(window=5)):
            slot_table(rows, (9, 0, 17), span, 4, 4)
        committed_pages(rows, (9, 0, 17), 4)


def test_lengths_that_the_host_does_not_know_are_asked_for() -> None:
    case = make_case([9, 30], 3)
    check(case, layer(plan(case, "merge", case.rows()), case))


# --- plans


def kernels(attention: object) -> list[fake_flashinfer.BatchPrefillWithPagedKVCacheWrapper]:
    return [wrapper.inner for wrapper in attention._planned.values()]


@pytest.mark.parametrize(("path", "each"), [("merge", 2), ("mask", 1), ("bitmap", 1)])
def test_a_plan_serves_all_layers_with_one_rule(path: str, each: int) -> None:
    case = make_case([9, 30], 3)
    attention = plan(case, path)
    before = sum(kernel.plans for kernel in kernels(attention))
    for _ in range(3):
        check(case, layer(attention, case))
    assert len(kernels(attention)) == each and before == 0
    capped = replace(case, rule=ScoreRule(0.1, logit_cap=2.0))
    check(capped, layer(attention, capped))
    assert len(kernels(attention)) == 2 * each
    wide = replace(case, rule=ScoreRule(case.rule.scale, window=33))  # hides nothing: 30 tokens and 3 nodes
    check(wide, layer(attention, wide))
    assert len(kernels(attention)) == 2 * each
    narrow = replace(case, rule=ScoreRule(case.rule.scale, window=32))
    check(narrow, layer(attention, narrow))
    assert len(kernels(attention)) == 2 * each + 1
    check(case, layer(attention, case))
    assert sum(kernel.plans for kernel in kernels(attention)) >= 2 * each + 1


def test_living_plans_share_no_wrapper_and_dropped_ones_return_theirs(fresh: None) -> None:
    first, second = make_case([9, 30], 3), make_case([50, 2], 4)
    one, two = plan(first, "merge"), plan(second, "merge")
    layer(one, first)
    check(second, layer(two, second))
    check(first, layer(one, first))
    assert not {id(k) for k in kernels(one)} & {id(k) for k in kernels(two)}
    lent = {id(k) for k in kernels(one)}
    del one
    gc.collect()
    three = plan(first, "merge")
    check(first, layer(three, first))
    assert {id(k) for k in kernels(three)} == lent


class Event:
    """The device has copied a plan once it was waited for."""

    def __init__(self) -> None:
        self.is_done = False

    def query(self) -> bool:
        return self.is_done

    def synchronize(self) -> None:
        self.is_done = True


def test_a_wrapper_is_planned_anew_when_the_device_has_copied_its_plan(fresh: None) -> None:
    device = torch.device("cpu")
    lent = [wrappers.borrow(device, 1, None) for _ in range(wrappers.IDLE_WRAPPERS)]
    events = [Event() for _ in lent]
    for wrapper, event in zip(lent, events, strict=True):
        wrapper._copied = event
    wrappers.give_back(lent[:2])
    assert wrappers.borrow(device, 1, None) not in lent  # the oldest still waits, and there are few: another is made
    wrappers.give_back(lent[2:])
    oldest = wrappers.borrow(device, 1, None)
    assert oldest is lent[0] and not events[0].is_done
    case = make_case([4], 1)
    oldest.plan(1, *slot_table(case.rows(), (4,), Span(), 16, 16), num_qo_heads=6, num_kv_heads=2, head_dim_qk=64)
    assert events[0].is_done and not events[1].is_done
    events[1].is_done = True
    assert wrappers.borrow(device, 1, None) is lent[1]


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """No wrapper and no workspace has been made yet."""
    monkeypatch.setattr(wrappers, "_idle", {})
    monkeypatch.setattr(wrappers, "_workspaces", {})


def test_the_workspace_has_room_for_every_split(fresh: None) -> None:
    """128 MiB are too few for 8 query heads a KV head and tiles of 128; the stand-in counts as FlashInfer's planner does."""
    case = make_case([9504], 17, kv_heads=2, groups=8, dim=128)
    check(case, layer(plan(case, "merge"), case))
    assert wrappers.workspace(torch.device("cpu"), 0).numel() > wrappers.WORKSPACE_BYTES


# --- what is refused


def test_what_each_path_takes() -> None:
    def ask(**changed: object) -> str | None:
        usual = {"num_nodes": 17, "path": "merge", "num_queries": None}
        shape = PagedShape(32, 8, 128, 16, torch.bfloat16, torch.device("cpu"))
        call = {name: changed.pop(name, value) for name, value in usual.items()}
        return why_not_flashinfer(replace(shape, **changed), **call)

    for path in PATHS:
        assert ask(path=path) is None
        assert "for CUDA devices, not meta" in ask(path=path, device=torch.device("meta"))
        assert "torch.float32" in ask(path=path, dtype=torch.float32)
        assert "not 96" in ask(path=path, head_dim=96)
        assert "at least one token" in ask(path=path, page_size=0)
    assert ask(num_queries=3) is None and ask(num_nodes=500) is None
    assert "all 17 nodes to ask, not 3" in ask(path="bitmap", num_queries=3)
    assert ask(path="bitmap", num_nodes=32) is None and "not 132" in ask(path="bitmap", num_nodes=33)
    assert ask(path="bitmap", num_nodes=16, head_dim=256) is None
    assert "up to 64 packed rows" in ask(path="bitmap", num_nodes=17, head_dim=256)
    with pytest.raises(ValueError, match="unknown path 'cascade'"):
        ask(path="cascade")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "flashinfer")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    case = make_case([4], 2)
    with pytest.raises(ValueError, match=r"pip install 'specplug\[flashinfer\]'.*kernel='torch' can"):
        plan(case, "merge")


def test_the_bitmap_kernel_wants_parents_first() -> None:
    case = make_case([9, 30], 3, ancestors=torch.tensor([[[1, 0, 1], [0, 1, 0], [0, 0, 1]]]).bool())
    check(case, layer(plan(case, "mask"), case))
    with pytest.raises(ValueError, match="a parent must stand before its children"):
        plan(case, "bitmap")


def test_a_flashinfer_that_keeps_its_mask_elsewhere_is_named(monkeypatch: pytest.MonkeyPatch, fresh: None) -> None:
    keep = fake_flashinfer.BatchPrefillWithPagedKVCacheWrapper._keep

    def elsewhere(self: object, *given: object) -> None:
        keep(self, *given)
        self._mask_indptr_buf = None

    monkeypatch.setattr(fake_flashinfer.BatchPrefillWithPagedKVCacheWrapper, "_keep", elsewhere)
    case = make_case([9, 30], 3)
    with pytest.raises(RuntimeError, match="keeps its mask pointers elsewhere"):
        layer(plan(case, "mask"), case)


# --- CUDA graphs


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("window", [None, 20])
def test_a_replayed_graph_computes_the_newly_planned_batch(path: str, window: int | None) -> None:
    """A replay runs the captured kernels over the buffers: here, the first plan's wrappers once more."""
    padded = torch.stack([paged_tools.random_ancestors(4), torch.zeros(4, 4, dtype=torch.bool)])
    first = make_case([9, 12], 4, window=window, page=4)
    second = make_case([33, 0], 4, window=window, page=4, ancestors=padded)
    graph = FlashInferGraph(
        num_rows=2, num_queries=4, num_nodes=4, max_length=40, page_size=4, device=torch.device("cpu")
    )
    captured = plan(first, path, graph=graph)
    check(first, layer(captured, first))
    again = plan(second, path, graph=graph)
    assert again._planned and not set(again._planned) - set(captured._planned)
    check(second, layer(captured, second))
    check(second, layer(again, second))


def test_a_graph_has_room_for_every_tile_of_queries(fresh: None) -> None:
    """Forty rows of little: more tiles than parts that the processors would be given."""
    case = make_case([3] * 40, 2, kv_heads=8, groups=8, dim=128, shared=True)
    graph = FlashInferGraph(
        num_rows=40, num_queries=2, num_nodes=2, max_length=3, page_size=16, device=torch.device("cpu")
    )
    check(case, layer(plan(case, "merge", graph=graph), case))


def test_a_batch_that_does_not_fit_the_buffers_is_named() -> None:
    graph = FlashInferGraph(
        num_rows=2, num_queries=4, num_nodes=4, max_length=40, page_size=4, device=torch.device("cpu")
    )
    with pytest.raises(ValueError, match="up to 40 tokens, not 41"):
        plan(make_case([9, 41], 4, page=4), "merge", graph=graph)
    with pytest.raises(ValueError, match="the buffers are for"):
        plan(make_case([9], 4, page=4), "merge", graph=graph)
    with pytest.raises(ValueError, match="the buffers are for"):
        plan(make_case([9, 3], 4, page=16), "merge", graph=graph)


def test_slots_between_pages() -> None:
    pool = torch.zeros(3, 4, 2, 64)
    assert slots_a_page(pool) == 4 and slots_a_page(pool[:, :1]) == 1 and slots_a_page(pool[:1]) == 4
    assert slots_a_page(torch.stack([pool, pool], 1)[:, 0]) == 8
    assert slots_a_page(heads_first(pool)[0]) == 8
