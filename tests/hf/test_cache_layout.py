"""Where positions stand, and what a node sees: store, views and steps against plain restatements."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specplug import KVPolicy, KVSelection, UnsupportedError
from specplug.kv_policies import Full, Streaming
from specplug.tree import fill_shape, shape_tensors
from specplug.trees import KAry, Sequoia
from specplug_hf.step import Step
from specplug_hf.store import KVStore
from specplug_hf.views import FullView, RingView, view_of


def random_store(rows: int, slots: int, capacity: int, layers: int = 2) -> KVStore:
    prompt = [(torch.randn(rows, 2, slots, 4), torch.randn(rows, 2, slots, 3)) for _ in range(layers)]
    store = KVStore(prompt, capacity)
    for layer, (keys, values) in enumerate(prompt):
        store.load(layer, keys, values, None, 0)
    return store


@given(sink=st.integers(0, 5), window=st.integers(1, 9), length=st.integers(1, 60))
@settings(max_examples=150, deadline=None)
def test_a_ring_holds_the_sinks_and_the_newest_window(sink: int, window: int, length: int) -> None:
    ring = RingView(sink, window)
    held: dict[int, int] = {}
    for position in range(length):
        held[int(ring.slots(torch.tensor(position)))] = position
    assert all(slot < ring.size for slot in held)
    expected = set(range(min(sink, length))) | set(range(max(0, length - window), length))
    assert set(held.values()) >= expected
    assert len(held) == min(length, ring.size) == ring.fills([length])[0]
    filled = torch.arange(ring.fills([length])[0])
    assert ring.positions(filled, torch.tensor([length]))[0].tolist() == [held[slot] for slot in filled.tolist()]


@pytest.mark.parametrize("view", [FullView(), RingView(2, 6)])
@pytest.mark.parametrize("shape", [KAry(2, 2).build(), Sequoia(7, 3).build()])
@pytest.mark.parametrize("lengths", [[5], [9], [4, 4], [3, 7, 12]])
def test_a_node_sees_what_is_committed_and_its_own_path(view, shape, lengths) -> None:
    trees = fill_shape(shape, torch.zeros(len(lengths), shape.num_nodes, dtype=torch.int64))
    for start, stop in ((0, shape.num_nodes), (1, 3)):
        step = Step(view, lengths, trees.ancestors, trees.depths, start, stop, shape=shape)
        bias = step.causal_bias(torch.float64)
        for row, (fill, base) in enumerate(zip(view.fills(lengths), view.bases(lengths), strict=True)):
            for node in range(start, stop):
                ancestors = shape_tensors(shape, torch.device("cpu")).ancestors[node].nonzero().flatten().tolist()
                expected = set(range(fill)) | {base + a for a in ancestors}
                assert seen(step, bias, row, node - start) == expected


def seen(step: Step, bias: torch.Tensor | None, row: int, query: int) -> set[int]:
    """Slots that a query sees, from the prefix and the additive mask."""
    if bias is None:
        return set(range(step.total))
    first = step.total - bias.shape[-1]
    columns = bias[min(row, bias.shape[0] - 1), 0, query]
    return set(range(first)) | {first + i for i in (columns == 0).nonzero().flatten().tolist()}


def test_a_models_pattern_is_evaluated_on_columns_not_slots() -> None:
    ring, shape = RingView(2, 6), KAry(2, 2).build()
    trees = fill_shape(shape, torch.zeros(2, shape.num_nodes, dtype=torch.int64))
    lengths, window = [5, 20], 4
    step = Step(ring, lengths, trees.ancestors, trees.depths, 0, shape.num_nodes, shape=shape)
    bias = step.bias(lambda b, h, q, k: (k <= q) & (k > q - window), torch.float64)
    for row, length in enumerate(lengths):
        for node in range(shape.num_nodes):
            depth = int(trees.depths[0, node])
            ancestors = trees.ancestors[0, node].nonzero().flatten().tolist()
            column = {ring.size + a: length + int(trees.depths[0, a]) for a in ancestors}
            for position in range(length):
                if position < 2 or position >= length - 6:
                    column[int(ring.slots(torch.tensor(position)))] = position
            expected = {slot for slot, c in column.items() if c > length + depth - window}
            assert seen(step, bias, row, node) == expected


def test_growing_keeps_what_was_there_and_at_least_doubles() -> None:
    store = random_store(rows=2, slots=5, capacity=6)
    before = [keys[:, :, :5].clone() for keys in store.keys]
    store.reserve(7)
    assert store.capacity == 12
    assert all(torch.equal(keys[:, :, :5], old) for keys, old in zip(store.keys, before, strict=True))
    assert all(bool((keys[:, :, 5:] == 0).all()) for keys in store.keys)


def capacities(store: KVStore, most: int) -> list[int]:
    """What the store grows to while a row gets longer, one slot after another."""
    found = [store.capacity]
    for slots in range(1, most + 1):
        store.reserve(slots)
        assert store.capacity >= slots
        if store.capacity != found[-1]:
            found.append(store.capacity)
    return found


def test_growing_ends_with_what_is_expected() -> None:
    store = random_store(rows=1, slots=5, capacity=6)
    store.expect(50)
    assert capacities(store, 50) == [6, 12, 24, 48, 50]
    store = random_store(rows=1, slots=5, capacity=6)
    store.expect(100_000)  # nothing is made in advance for a text that may end early
    assert capacities(store, 13) == [6, 12, 24]
    store.reserve(1000)
    assert store.capacity == 1000


def test_more_than_is_expected_is_had_without_a_copy_a_slot() -> None:
    store = random_store(rows=1, slots=5, capacity=6)
    store.expect(10)
    assert capacities(store, 60) == [6, 10, 12, 16, 24, 40, 72]
    store.expect(7)  # less than there is
    store.reserve(73)
    assert store.capacity == 139


def test_a_store_that_was_told_too_much_or_nothing_doubles() -> None:
    told, free = random_store(rows=1, slots=5, capacity=6), random_store(rows=1, slots=5, capacity=6)
    told.expect(10**9)
    assert capacities(told, 300) == capacities(free, 300) == [6, 12, 24, 48, 96, 192, 384]


def test_masked_columns_are_left_out_on_loading() -> None:
    keys, values = torch.randn(2, 2, 4, 3), torch.randn(2, 2, 4, 3)
    store = KVStore([(keys, values)], 8)
    store.load(0, keys, values, torch.tensor([[-1, -1, 0, 1], [0, 1, 2, 3]]), 0)
    assert torch.equal(store.keys[0][0, :, :2], keys[0, :, 2:])
    assert torch.equal(store.values[0][1, :, :4], values[1])
    assert bool((store.keys[0][0, :, 2:] == 0).all())


def test_a_sliding_layer_fills_only_the_columns_it_kept() -> None:
    keys = torch.randn(1, 2, 3, 4)
    store = KVStore([(keys, keys)], 10)
    store.load(0, keys, keys, None, 5)
    assert torch.equal(store.keys[0][:, :, 5:8], keys)
    assert bool((store.keys[0][:, :, :5] == 0).all())


def test_rows_that_stay_move_together_unchanged() -> None:
    store = random_store(rows=4, slots=5, capacity=8)
    before = [(k.clone(), v.clone()) for k, v in zip(store.keys, store.values, strict=True)]
    store.keep_rows([0, 2, 3])
    for (keys, values), (old_keys, old_values) in zip(zip(store.keys, store.values, strict=True), before, strict=True):
        assert torch.equal(keys, old_keys[[0, 2, 3]])
        assert torch.equal(values, old_values[[0, 2, 3]])


def test_layers_of_different_shapes_stand_in_one_store() -> None:
    prompt = [(torch.randn(1, 2, 3, 4),) * 2, (torch.randn(1, 1, 3, 8),) * 2, (torch.randn(1, 2, 3, 4),) * 2]
    store = KVStore(prompt, 6)
    for layer, (keys, values) in enumerate(prompt):
        store.load(layer, keys, values, None, 0)
    store.move(torch.tensor([[2]]), torch.tensor([[4]]))
    for layer, (keys, _) in enumerate(prompt):
        assert torch.equal(store.keys[layer][:, :, 4], keys[:, :, 2])
    assert store.bytes_per_token == (2 * 4 + 8 + 2 * 4) * 2 * 4


class Scattered(KVPolicy):
    """A stranger's policy that the adapter cannot lay out: every second position."""

    def select(self, lengths: torch.Tensor) -> KVSelection:
        return KVSelection(torch.arange(0, 8, 2)[None, None, None], window=4)


def test_a_selection_that_cannot_be_laid_out_is_refused_by_name() -> None:
    assert view_of(Streaming(2, 6)).size == 8
    assert isinstance(view_of(Full()), FullView)
    with pytest.raises(UnsupportedError, match=r"Scattered.*use 'streaming' or 'full'"):
        view_of(Scattered())
