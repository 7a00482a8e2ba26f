"""What nodes read of a paged cache, against slow loops that say the same in plain words."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specplug.kv_policies import Full, Streaming
from specplug.tree import TreeShape, shape_tensors
from specplug_sglang.view import SlotTable, committed_columns, draft_view, flat_mask, reading_view, verify_view

SHAPE = TreeShape((-1, 0, 0, 1, 1, 2))
DERIVED = shape_tensors(SHAPE, torch.device("cpu"))
ANCESTORS, DEPTHS = DERIVED.ancestors[None], DERIVED.depths[None]


def table(rows: list[int], width: int = 64) -> SlotTable:
    """Slots that name their request and position: 100 * request + position."""
    slots = 100 * torch.arange(8)[:, None] + torch.arange(width)
    return SlotTable(slots.int(), torch.tensor(rows))


def read_by(view, row: int, query: int) -> list[int]:
    return sorted(view.slots[row][view.visible[row, query]].tolist())


@given(st.lists(st.integers(0, 40), min_size=1, max_size=4))
def test_a_node_sees_its_rows_text_and_its_ancestors(lengths):
    requests = [3, 1, 7, 5][: len(lengths)]
    view = verify_view(table(requests), torch.tensor(lengths), max(lengths), ANCESTORS, DEPTHS)
    for row, (request, length) in enumerate(zip(requests, lengths, strict=True)):
        for node in range(SHAPE.num_nodes):
            seen = [*range(length), *(length + other for other in range(SHAPE.num_nodes) if ANCESTORS[0, node, other])]
            assert read_by(view, row, node) == [100 * request + position for position in seen]
            assert view.positions[row, node] == length + DEPTHS[0, node]


@given(st.lists(st.integers(0, 40), min_size=1, max_size=4), st.integers(0, 12))
def test_a_sliding_window_counts_positions_not_slots(lengths, window):
    view = verify_view(table(list(range(len(lengths)))), torch.tensor(lengths), max(lengths), ANCESTORS, DEPTHS)
    for row, length in enumerate(lengths):
        for node in range(SHAPE.num_nodes):
            own = length + int(DEPTHS[0, node])
            committed = [p for p in range(length) if own - p <= window]
            tree = [
                length + o for o in range(6) if ANCESTORS[0, node, o] and own - length - int(DEPTHS[0, o]) <= window
            ]
            near = view.within(window)[row, node]
            assert sorted(view.slots[row][near].tolist()) == [100 * row + p for p in committed + tree]


@given(st.lists(st.integers(0, 50), min_size=1, max_size=4), st.integers(0, 6), st.integers(1, 20))
def test_streaming_reads_the_first_and_the_latest_positions_once(lengths, sink, window):
    positions, counted = committed_columns(Streaming(sink=sink, window=window), torch.tensor(lengths), max(lengths))
    for row, length in enumerate(lengths):
        expected = sorted({*range(min(sink, length)), *range(max(0, length - window), length)})
        assert sorted(positions[row][counted[row]].tolist()) == expected


@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=4),
    st.none() | st.tuples(st.integers(0, 5), st.integers(1, 12)),
    st.integers(0, 6),
    st.data(),
)
def test_what_is_read_late_is_read_as_at_its_own_time(lengths, sizes, behind, data):
    policy = Full() if sizes is None else Streaming(sink=sizes[0], window=sizes[1])
    count = data.draw(st.integers(1, behind + 1))
    view = reading_view(table(list(range(len(lengths)))), policy, torch.tensor(lengths), max(lengths), behind, count)
    for row, length in enumerate(lengths):
        for query in range(count):
            own = length - behind + query
            if own < 0:
                assert len(read_by(view, row, query)) == 1 and view.positions[row, query] == 0
                continue
            window = own if sizes is None else sizes[1]
            sink = 0 if sizes is None else sizes[0]
            seen = {*range(min(sink, own)), *range(max(0, own - window), own + 1)}
            assert read_by(view, row, query) == [100 * row + position for position in sorted(seen)]
            assert view.positions[row, query] == own


def test_full_reads_everything():
    positions, counted = committed_columns(Full(), torch.tensor([3, 5]), 5)
    assert [positions[row][counted[row]].tolist() for row in range(2)] == [[0, 1, 2], [0, 1, 2, 3, 4]]


@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_draft_node_sees_the_selection_and_its_ancestors(level):
    lengths, (start, stop) = torch.tensor([30, 2]), SHAPE.levels[level]
    selected = committed_columns(Streaming(sink=2, window=4), lengths, 30)
    view = draft_view(table([4, 6]), lengths, selected, start, ANCESTORS[:, start:stop, :stop], DEPTHS[:, :stop])
    committed = {0: [0, 1, 26, 27, 28, 29], 1: [0, 1]}
    for row, request in enumerate([4, 6]):
        for query, node in enumerate(range(start, stop)):
            tree = [int(lengths[row]) + other for other in range(stop) if ANCESTORS[0, node, other]]
            assert read_by(view, row, query) == [100 * request + p for p in committed[row] + tree]
            assert view.positions[row, query] == lengths[row] + DEPTHS[0, node]
    assert view.slots[:, start - stop :].tolist() == [
        [430 + n for n in range(start, stop)],
        [602 + n for n in range(start, stop)],
    ]


@given(st.lists(st.integers(0, 30), min_size=1, max_size=4))
def test_flat_lists_hold_what_each_query_sees(lengths):
    view = verify_view(table(list(range(len(lengths)))), torch.tensor(lengths), max(lengths), ANCESTORS, DEPTHS)
    indptr, indices = view.flat()
    assert indptr.dtype == indices.dtype == torch.int32
    for query in range(len(lengths) * SHAPE.num_nodes):
        row, node = divmod(query, SHAPE.num_nodes)
        assert sorted(indices[indptr[query] : indptr[query + 1]].tolist()) == read_by(view, row, node)


@settings(max_examples=50)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=5))
def test_the_flat_mask_is_each_rows_mask_one_after_another(lengths):
    parts = []
    for length in lengths:
        part = torch.ones(SHAPE.num_nodes, length + SHAPE.num_nodes, dtype=torch.bool)
        part[:, length:] = ANCESTORS[0]
        parts.append(part.flatten())
    assert torch.equal(flat_mask(torch.tensor(lengths), sum(lengths), ANCESTORS), torch.cat(parts))
