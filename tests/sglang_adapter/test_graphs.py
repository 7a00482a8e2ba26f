"""CUDA graphs without a GPU: which are captured, which is used, and that a padded input is the eager one and nothing else."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specplug.kv_policies import Full, Streaming
from specplug.tree import TreeShape, shape_tensors
from specplug_sglang.graphs import Graphs
from specplug_sglang.graphs.draft import DraftGraphs
from specplug_sglang.graphs.sizes import MOST_GRAPHS, MOST_TOKENS, fits, size_for, token_counts
from specplug_sglang.graphs.static import StaticInputs
from specplug_sglang.graphs.verify import VerifyGraphs, Width
from specplug_sglang.view import SlotTable, committed_columns, draft_view

SHAPE = TreeShape((-1, 0, 0, 1, 1, 2))
DERIVED = shape_tensors(SHAPE, torch.device("cpu"))
VOCABULARY = 7
STREAMING = Streaming(sink=2, window=5)


def one_rank(holds: bool) -> bool:
    return holds


def level(lengths: list[int], number: int, policy=STREAMING):
    """A draft's forward of one level, as `forward_nodes` gets it: tokens, view, write, positions, rows, lengths."""
    rows, sizes = torch.arange(1, len(lengths) + 1), torch.tensor(lengths)
    start, stop = SHAPE.levels[number]
    slots = 100 * torch.arange(9)[:, None] + torch.arange(64)
    view = draft_view(
        SlotTable(slots.int(), rows), sizes, committed_columns(policy, sizes, max(lengths)), start,
        DERIVED.ancestors[None, start:stop, :stop], DERIVED.depths[None, :stop],
    )  # fmt: skip
    tokens = 10 + torch.arange(len(lengths) * (stop - start)).view(len(lengths), -1)
    return tokens, view, view.slots[:, start - stop :], view.positions.flatten(), rows, sizes


def read(inputs: StaticInputs, token: int) -> list[int]:
    return inputs.indices[inputs.indptr[token] : inputs.indptr[token + 1]].tolist()


class RecorderStandIn:
    """Stands in for recorded CUDA graphs: a replay is a plain function of what the static inputs hold.

    Like a graph's, its output lives in one place that every replay writes again.
    """

    def __init__(self, inputs: StaticInputs, fails: dict[int, str] | None = None) -> None:
        self.inputs, self.fails = inputs, fails or {}
        self.recorded: list[int] = []
        self.replayed: list[int] = []
        self.output = torch.zeros(inputs.size, VOCABULARY)

    def record(self, size: int) -> None:
        if self.fails.get(size) == "record":
            raise RuntimeError("out of memory")
        self.recorded.append(size)

    def replay(self, size: int) -> torch.Tensor:
        if self.fails.get(size) == "replay":
            raise RuntimeError("no such plan")
        self.replayed.append(size)
        for token in range(size):
            slots = read(self.inputs, token)
            assert slots, "attention over nothing is NaN"
            self.output[token] = logits(
                self.inputs.tokens[token], self.inputs.positions[token], self.inputs.write[token], slots
            )
        return self.output[:size]


def logits(token, position, write, slots) -> torch.Tensor:
    """Any function of a token's whole input."""
    return (float(token) + 3 * float(position) + 7 * float(write) + sum(slots)) * torch.arange(1.0, VOCABULARY + 1)


def eager(tokens, view, write, positions) -> torch.Tensor:
    flat = []
    for query in range(tokens.numel()):
        row, node = divmod(query, tokens.shape[1])
        slots = view.slots[row][view.visible[row, node]].tolist()
        flat.append(logits(tokens[row, node], positions[query], write[row, node], slots))
    return torch.stack(flat).view(*tokens.shape, -1)


def drafts(sizes, columns=16, fails=None) -> tuple[DraftGraphs, RecorderStandIn]:
    inputs = StaticInputs(max(sizes), columns, "cpu", torch.int64)
    recorder = RecorderStandIn(inputs, fails)
    made = DraftGraphs(inputs, recorder)
    made.capture(sizes, one_rank)
    recorder.replayed.clear()
    return made, recorder


# --- which shapes


@given(st.sets(st.integers(1, 300), min_size=1), st.sets(st.integers(1, 12), min_size=1))
def test_the_sizes_are_few_and_keep_the_smallest_and_the_largest(batch_sizes, widths):
    all_sizes = sorted({b * w for b in batch_sizes for w in widths if b * w <= MOST_TOKENS})
    sizes = token_counts(batch_sizes, widths)
    assert list(sizes) == sorted({*sizes}) and {*sizes} <= {*all_sizes}
    assert len(sizes) == min(MOST_GRAPHS, len(all_sizes))
    if all_sizes:
        assert (sizes[0], sizes[-1]) == (all_sizes[0], all_sizes[-1])


@given(st.integers(1, 40), st.sets(st.integers(1, 30)))
def test_a_forward_gets_the_smallest_graph_that_holds_it(count, sizes):
    assert size_for(count, sorted(sizes)) == min((size for size in sizes if size >= count), default=None)


def test_a_width_is_captured_only_where_memory_stays_free():
    assert fits(width=5, widest=10, widest_gb=4.0, free_gb=3.0)
    assert not fits(width=5, widest=10, widest_gb=4.0, free_gb=2.9)


# --- static inputs


@settings(max_examples=60)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=4), st.integers(0, 2), st.integers(0, 5))
def test_static_inputs_hold_the_eager_input_and_padding_reads_the_slot_of_nobody(lengths, number, pad):
    tokens, view, write, positions, rows, sizes = level(lengths, number)
    count = tokens.numel()
    inputs = StaticInputs(count + pad + 2, view.slots.shape[1] + 1, "cpu", torch.int32)
    for buffer in (inputs.tokens, inputs.positions, inputs.write, inputs.rows, inputs.lengths, inputs.indices):
        buffer.fill_(55)  # what an earlier, larger forward left
    inputs.load(count + pad, tokens, view, write, positions, rows, sizes)
    each = tokens.shape[1]
    assert inputs.tokens[:count].tolist() == tokens.flatten().tolist()
    assert inputs.positions[:count].tolist() == positions.tolist()
    assert inputs.write[:count].tolist() == write.flatten().tolist()
    assert inputs.rows[:count].tolist() == [row for row in rows.tolist() for _ in range(each)]
    assert inputs.lengths[:count].tolist() == [length for length in lengths for _ in range(each)]
    for token in range(count):
        assert read(inputs, token) == view.slots[token // each][view.visible[token // each, token % each]].tolist()
    for token in range(count, count + pad):
        assert read(inputs, token) == [0]
        assert (inputs.tokens[token], inputs.positions[token], inputs.write[token]) == (0, 0, 0)
        assert (inputs.rows[token], inputs.lengths[token]) == (0, 1)
    assert inputs.counts(count + pad).tolist() == [len(read(inputs, token)) for token in range(count + pad)]


def test_addresses_stay():
    inputs = StaticInputs(12, 16, "cpu", torch.int64)
    buffers = {name: value.data_ptr() for name, value in vars(inputs).items() if isinstance(value, torch.Tensor)}
    for lengths in ([9, 3], [1, 2, 30]):
        inputs.load(12, *level(lengths, 1))
    assert buffers == {name: value.data_ptr() for name, value in vars(inputs).items() if name in buffers}


def test_a_capture_sees_padding_only():
    inputs = StaticInputs(4, 3, "cpu", torch.int64)
    assert [read(inputs, token) for token in range(4)] == [[0]] * 4


# --- drafts


@settings(max_examples=40)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=4), st.integers(0, 2))
def test_a_replay_gives_what_the_eager_forward_gives(lengths, number):
    made, recorder = drafts([1, 3, 8, 12])
    tokens, view, write, positions, rows, sizes = level(lengths, number)
    replayed = made.forward(tokens, view, write, positions, rows, sizes)
    assert torch.equal(replayed, eager(tokens, view, write, positions))
    assert recorder.replayed == [size_for(tokens.numel(), made.sizes)]


def test_an_earlier_result_outlives_the_next_replay():
    made, _ = drafts([4])
    first = level([9, 3], 0)
    kept = made.forward(*first)
    made.forward(*level([20, 4], 0))
    assert torch.equal(kept, eager(*first[:4]))


def test_the_largest_is_captured_first_and_each_is_tried():
    _, recorder = drafts([2, 4, 8])
    assert recorder.recorded == [8, 4, 2]


def test_what_cannot_be_captured_or_replayed_runs_in_the_next_size_or_eagerly(caplog):
    with caplog.at_level(logging.INFO):
        made, recorder = drafts([2, 4, 8], fails={4: "record", 8: "replay"})
    assert made.sizes == (2,)
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert made.forward(*level([9], 1)) is not None and recorder.replayed == [2]
    assert made.forward(*level([9, 3, 5], 0)) is None


def test_a_graph_that_another_rank_lacks_is_not_used():
    inputs = StaticInputs(4, 16, "cpu", torch.int64)
    made = DraftGraphs(inputs, RecorderStandIn(inputs))
    made.capture([2, 4], lambda holds: False)
    assert made.sizes == () and made.forward(*level([9], 0)) is None


@pytest.mark.parametrize(
    ("lengths", "policy", "reason"),
    [
        ([40], Full(), "read 41 positions, over the 16"),
        ([9] * 5, STREAMING, "have 5 tokens; there are graphs for"),
    ],
)
def test_what_outgrows_the_graphs_is_eager_and_said_once(caplog, lengths, policy, reason):
    made, recorder = drafts([2, 4])
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            assert made.forward(*level(lengths, 0, policy)) is None
    assert recorder.replayed == []
    assert [reason in record.getMessage() for record in caplog.records] == [True]


# --- verify


def runner_stand_in():
    """Stands in for SGLang's model runner: the two fields that a width replaces."""
    return SimpleNamespace(attn_backend="own attention", decode_cuda_graph_runner="own graphs")


def in_place(runner) -> tuple[str, str]:
    return runner.attn_backend, runner.decode_cuda_graph_runner


def build(width: int) -> Width:
    if width == 4:
        raise RuntimeError("out of memory")
    return Width(f"attention {width}", f"graphs {width}")


def test_each_width_has_its_graphs_in_place_for_its_own_verify(caplog):
    runner = runner_stand_in()
    made = VerifyGraphs(runner, own=9)
    with caplog.at_level(logging.INFO):
        for width in (6, 4, 1):
            made.capture(width, build, one_rank)
    assert made.widths == (1, 6, 9)
    assert "verifies of 4 nodes" in caplog.text
    for width in (6, 1):
        with made.at(width):
            assert in_place(runner) == (f"attention {width}", f"graphs {width}")
        assert in_place(runner) == ("own attention", "own graphs")


def test_a_width_without_graphs_is_left_to_sglang_and_said_once(caplog):
    runner = runner_stand_in()
    made = VerifyGraphs(runner, own=9)
    made.capture(6, build, one_rank)
    with caplog.at_level(logging.INFO):
        for width in (9, 3, 3, 2, 9, 3):
            with made.at(width):
                assert in_place(runner) == ("own attention", "own graphs")
    assert [record.getMessage().split(" run")[0] for record in caplog.records] == [
        "specplug: verifies of 3 nodes",
        "specplug: verifies of 2 nodes",
    ]


def test_a_failing_verify_leaves_sglangs_own_in_place():
    runner = runner_stand_in()
    made = VerifyGraphs(runner, own=9)
    made.capture(6, build, one_rank)
    with pytest.raises(ValueError, match="lost"), made.at(6):
        raise ValueError("lost")
    assert in_place(runner) == ("own attention", "own graphs")


def test_a_width_that_another_rank_lacks_is_not_used():
    made = VerifyGraphs(runner_stand_in(), own=9)
    made.capture(6, build, lambda holds: False)
    assert made.widths == (9,)


# --- a server without


def test_without_graphs_nothing_happens():
    none = Graphs()
    with none.verifying(5):
        pass
    assert none.draft(object(), *level([9], 0)) is None


def test_a_models_own_graphs_are_used():
    made, recorder = drafts([2])
    model, other = object(), object()
    graphs = Graphs(drafts={model: made})
    assert graphs.draft(other, *level([9], 0)) is None and recorder.replayed == []
    assert graphs.draft(model, *level([9], 0)) is not None and recorder.replayed == [2]
