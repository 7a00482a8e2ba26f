"""The benchmark counts what a hand counts, prints time over floor, loses nothing when cut off, and says what did not run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from specplug.random import VERIFY_STREAM, uniforms
from specplug.tree import TreeShape, fill_shape
from specplug.verify import verify_greedy, verify_sampled
from specplug_kernels import bench, explain, serves_norms
from specplug_kernels.bench import attention_cases, command
from specplug_kernels.bench.machine import Machine, measured_machine
from specplug_kernels.bench.operations import OPERATIONS
from specplug_kernels.bench.shapes import LLAMA_8B, PRESETS, Model, Shape
from specplug_kernels.bench.timing import Stopwatch, measure
from specplug_kernels.bench.trees import binary_tree
from specplug_kernels.bench.verdict_torch import verify_greedy_torch, verify_sampled_torch
from specplug_kernels.bench.work import Work
from specplug_kernels.native.attention_library import attention_library
from specplug_kernels.native.linear_library import linear_library

CPU = torch.device("cpu")
SMALL = ["--heads", "4/2/16", "--batch", "2", "--context", "10", "--nodes", "3", "--page", "4", "--vocab", "100"]
QUICK = ["--repeats", "2", "--seconds", "0"]


def small_shape(nodes: int = 3) -> Shape:
    return Shape(Model(4, 2, 16, layers=8, vocab=100), 2, 10, nodes, torch.float32, 4)


@pytest.fixture
def fake_machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine of invented rates, so that no test waits for real ones: a byte and two operations a microsecond."""
    machine = Machine(CPU, "fake", 1e6, "invented", 2e6, "invented", 2**20)
    monkeypatch.setattr(command, "measured_machine", lambda device, dtype: machine)
    return machine


def test_work_is_what_a_hand_counts() -> None:
    """B 2, heads 4 over 2 of 16, 10 + 3 columns, float32, pages of 4; three nodes see 1 + 2 + 2 of each other."""
    cache, nodes = 2 * 2 * 2 * 13 * 16, 2 * 2 * 4 * 3 * 16  # numbers in K and V; in queries and outputs
    products = 2 * 4 * (3 * 10 + 5) * 2 * 2 * 16  # pairs, times two products, times two operations an element
    path, moves = 2, 2
    expected = {
        "attention": Work((cache + nodes + 2 * 3 * (8 + 3)) * 4, products),
        "paged-attention": Work((cache + nodes) * 4 + 2 * 4 * 4 + 3 * 4 + 2 * 4 * 3 * 4, products),
        "linear": Work((64 * 64 + 6 * (64 + 64)) * 4, 2 * 6 * 64 * 64),
        "norm": Work((6 + 6 + 1) * 64 * 4, 4 * 6 * 64),
        "verify-greedy": Work(2 * (3 + 3 + path + 1 + 1) * 8 + 3 * (8 + 8 + 4), 0),
        "verify-sampled-accepted": Work(2 * 100 * 4, 2 * 100),
        "verify-sampled-refused": Work(2 * 100 * 4 * 2, 2 * 100 * 11),
        "commit": Work(2 * 8 * 2 * moves * (2 * 16 * 4) * 2 + 2 * 2 * moves * 8, 0),
        "paged-commit": Work(2 * 8 * 2 * moves * (2 * 16 * 4) * 2 + 2 * 2 * moves * 8, 0),
        "write": Work(2 * 2 * 3 * (2 * 16 * 4) * 2 + 2 * 3 * 8, 0),
    }
    assert {name: operation.build(small_shape(), CPU).work for name, operation in OPERATIONS.items()} == expected


def test_half_precision_halves_the_cache() -> None:
    whole, half = (
        OPERATIONS["attention"].build(Shape(LLAMA_8B, 1, 32, 1, dtype, 16), CPU).work
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert whole == Work(2 * half.bytes, half.operations)


def test_the_floor_is_the_slower_of_moving_and_computing() -> None:
    machine = Machine(CPU, "fake", 100.0, "", 10.0, "", 1)
    assert machine.floor(Work(1000, 50)) == (10.0, "bytes")
    assert machine.floor(Work(1000, 200)) == (20.0, "operations")


def test_the_ratio_is_time_over_floor(
    fake_machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "bench.json"
    bench.main([*SMALL, *QUICK, "--json", str(file)])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith(tuple(OPERATIONS))]
    told = json.loads(file.read_text())
    assert told["finished"] and len(rows) == len(told["cases"]) and told["machine"]["bandwidth"] == 1e6
    assert {case["operation"] for case in told["cases"]} == set(OPERATIONS)
    timed = 0
    for row, case in zip(rows, told["cases"], strict=True):
        assert case["floor_us"] == pytest.approx(max(case["bytes"] / 1.0, case["operations"] / 2.0))
        assert case["bound"] == ("bytes" if case["bytes"] * 2 >= case["operations"] else "operations")
        if case["timing"] is None:
            continue
        timed += 1
        median = case["timing"]["median"]
        assert case["to_floor"] == pytest.approx(median / case["floor_us"])
        assert case["gigabytes_per_second"] == pytest.approx(case["bytes"] / median / 1e3)
        assert f"{case['to_floor']:.2f}" in row.split()
    assert timed > len(OPERATIONS)


def test_what_auto_picks_is_marked_and_reading_is_what_it_is_compared_with(
    fake_machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "bench.json"
    bench.main(["--operations", "attention", *SMALL, *QUICK, "--json", str(file)])
    header, *rows = capsys.readouterr().out.splitlines()[3:]
    cases = {case["backend"]: case for case in json.loads(file.read_text())["cases"]}
    chosen = explain((2, 4, 3, 16), (2, 2, 13, 16)).partition(":")[0]
    assert [name for name, case in cases.items() if case["chosen"]] == [chosen]
    assert all(len(row) == len(header) for row, case in zip(rows, cases.values(), strict=True) if case["timing"])
    assert sum(f"{chosen}* " in row for row in rows) == 1
    reading = cases["reading once"]["timing"]["median"]
    for case in cases.values():
        if case["timing"] is not None:
            assert case["to_reading"] == pytest.approx(case["timing"]["median"] / reading)
    assert cases["torch"]["reason"] == "timed only where --backends names it"


def test_partial_results_survive_an_interruption(
    fake_machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, measured = tmp_path / "bench.json", []

    def interrupted(*arguments: object, **options: object) -> object:
        if len(measured) == 2:
            raise KeyboardInterrupt
        measured.append(None)
        return measure(*arguments, **options)

    monkeypatch.setattr(command, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bench.main(["--operations", "commit", "write", "verify-greedy", *SMALL, *QUICK, "--json", str(file)])
    told = json.loads(file.read_text())
    assert not told["finished"]
    assert {case["operation"] for case in told["cases"] if case["timing"] is not None} == {"commit", "write"}


def test_an_interruption_while_writing_leaves_the_file_before(
    fake_machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, written = tmp_path / "bench.json", []
    whole = Path.write_text

    def cut_off(self: Path, text: str, **options: object) -> int:
        written.append(None)
        if len(written) < 2:
            return whole(self, text, **options)
        whole(self, text[: len(text) // 2], **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", cut_off)
    with pytest.raises(KeyboardInterrupt):
        bench.main(["--operations", "commit", "write", *SMALL, *QUICK, "--json", str(file)])
    assert {case["operation"] for case in json.loads(file.read_text())["cases"]} == {"commit"}


def test_what_cannot_run_is_listed_with_its_reason(
    fake_machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "bench.json"
    bench.main([*SMALL, *QUICK, "--json", str(file)])
    shown = capsys.readouterr().out
    absent = {(c["operation"], c["backend"]): c["reason"] for c in json.loads(file.read_text())["cases"] if c["reason"]}
    operations = (
        "paged-attention",
        "verify-greedy",
        "verify-sampled-accepted",
        "verify-sampled-refused",
        "paged-commit",
    )
    for operation in operations:
        assert "interpreter is not worth timing" in absent[operation, "triton"]
    assert {name for operation, name in absent if operation == "paged-attention"} >= {"triton", "flashinfer"}
    assert all(f"not run: {reason}" in shown for reason in absent.values())


def test_a_backend_that_fails_is_listed_and_the_others_run(
    fake_machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*arguments: object, kernel: str, **options: object) -> object:
        if kernel == "packed":
            raise RuntimeError("out of something\nand a long story")
        return None

    monkeypatch.setattr(attention_cases, "tree_attention", failing)
    file = tmp_path / "bench.json"
    bench.main(["--operations", "attention", *SMALL, *QUICK, "--json", str(file)])
    cases = {case["backend"]: case for case in json.loads(file.read_text())["cases"]}
    assert cases["packed"]["reason"] == "RuntimeError: out of something"
    assert cases["split"]["timing"] is not None


def test_compiled_attention_that_is_not_there_is_listed_with_its_reason(
    fake_machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_library, "found", "no compiler")
    file = tmp_path / "bench.json"
    bench.main(["--operations", "attention", *SMALL, *QUICK, "--json", str(file)])
    cases = {case["backend"]: case for case in json.loads(file.read_text())["cases"]}
    assert cases["native"]["reason"] == "it is not available: no compiler" and cases["native"]["timing"] is None


def test_layers_have_the_backend_that_auto_picks(fake_machine: Machine, tmp_path: Path) -> None:
    """Six rows of 64, and as many as the compiled product is not faster for."""
    file = tmp_path / "bench.json"
    sizes = ["--heads", "4/2/16", "--batch", "2", "3000", "--context", "10", "--nodes", "3"]
    bench.main(["--operations", "linear", "norm", *sizes, *QUICK, "--json", str(file)])
    cases = json.loads(file.read_text())["cases"]
    picked = {(c["operation"], c["shape"]): c["backend"] for c in cases if c["chosen"]}
    if isinstance(linear_library(), str) or not serves_norms(torch.float32):
        pytest.skip("no compiled layers are chosen here")
    assert picked["linear", "rows6 D64 fp32"] == picked["norm", "rows6 D64 fp32"] == "native"
    assert picked["linear", "rows9000 D64 fp32"] == "torch"


def test_only_the_backends_that_were_asked_for(fake_machine: Machine, tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    options = ["--operations", "attention", "paged-attention", "--backends", "torch", "triton"]
    bench.main([*options, *SMALL, *QUICK, "--json", str(file)])
    seen = {(case["operation"], case["backend"]) for case in json.loads(file.read_text())["cases"]}
    comparisons = {("attention", "reading once"), ("paged-attention", "reading once")}
    named = {("attention", "torch"), ("paged-attention", "torch"), ("paged-attention", "triton")}
    assert seen == comparisons | named


def test_a_case_beyond_the_memory_is_not_built(
    fake_machine: Machine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.main(["--operations", "attention", *SMALL, *QUICK, "--memory", "1e-9", "--dtype", "bfloat16"])
    (row,) = capsys.readouterr().out.splitlines()[4:]
    assert "not run: its tensors take 0.0 GiB, more than" in row


def test_shapes_that_an_operation_does_not_tell_apart_are_measured_once(fake_machine: Machine, tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    shapes = ["--heads", "4/2/16", "--batch", "1", "--context", "8", "12", "--nodes", "3", "--vocab", "9"]
    bench.main(["--operations", "write", "attention", *shapes, *QUICK, "--json", str(file)])
    cases = json.loads(file.read_text())["cases"]
    assert len({case["shape"] for case in cases if case["operation"] == "attention"}) == 2
    assert len([case for case in cases if case["operation"] == "write"]) == 1
    keys = [OPERATIONS["write"].depends_on, OPERATIONS["commit"].depends_on]
    deeper = replace(small_shape(), model=replace(small_shape().model, layers=9))
    assert [key(small_shape()) == key(deeper) for key in keys] == [True, False]


def test_no_backend_of_a_cpu_fails(fake_machine: Machine, tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    bench.main([*SMALL, *QUICK, "--json", str(file)])
    reasons = [case["reason"] for case in json.loads(file.read_text())["cases"] if case["reason"]]
    assert reasons and not any("Error: " in reason for reason in reasons)


def test_committed_columns_are_visible_to_every_node() -> None:
    shape = small_shape(3)
    bias = attention_cases._bias(binary_tree(3), 8, shape, CPU)
    assert bias.shape == (2, 1, 3, 11) and bias[..., :8].eq(0).all()
    assert bias[0, 0, :, 8:].eq(0).tolist() == [[True, False, False], [True, True, False], [True, False, True]]


def test_the_backends_of_a_case_compute_the_same() -> None:
    for name in ("attention", "paged-attention"):
        case = OPERATIONS[name].build(small_shape(7), CPU)
        outputs = [out[0] if isinstance(out := call(), tuple) else out for call in case.calls.values()]
        for out in outputs[1:]:
            torch.testing.assert_close(out, outputs[0])


@pytest.mark.parametrize("nodes", [1, 2, 3, 6, 7])
def test_sampled_cases_accept_everything_or_nothing(nodes: int) -> None:
    for name, accepted in (("accepted", binary_tree(nodes).width - 1), ("refused", 0)):
        case = OPERATIONS[f"verify-sampled-{name}"].build(small_shape(nodes), CPU)
        assert case.calls["torch"]().num_accepted.tolist() == [accepted] * 2


@pytest.mark.parametrize("nodes", [1, 2, 5, 12])
def test_verification_in_torch_is_that_of_the_core(nodes: int) -> None:
    tree, rows, vocab = binary_tree(nodes), 200, 5
    inner = max(1, int((tree.children[:, 0] >= 0).sum()))
    laws, probs = (torch.rand(rows, count, vocab).pow(2) for count in (inner, nodes))
    laws[:, :, 0], probs[::7] = 0.0, 0.5  # a token that is not drawn, and a law that is flat
    laws, probs = laws / laws.sum(-1, keepdim=True), probs / probs.sum(-1, keepdim=True)
    tokens = torch.randint(0, vocab, (rows, nodes))
    trees = fill_shape(TreeShape(tuple(tree.parents.tolist())), tokens, laws=laws)
    numbers = uniforms(torch.arange(rows), torch.zeros(rows, dtype=torch.int64), VERIFY_STREAM, nodes + 1)
    accept, bonus = numbers[:, 1:], numbers[:, 0]
    ours = verify_sampled_torch(tokens, tree, probs, accept, bonus, laws, tree.parents.clamp(min=0))
    theirs = verify_sampled(trees, probs, accept, bonus)
    for name in ("path", "num_accepted", "bonus"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    targets = torch.randint(0, 2, (rows, nodes))
    greedy, expected = (
        verify_greedy_torch(tokens % 2, tree, targets),
        verify_greedy(fill_shape(TreeShape(tuple(tree.parents.tolist())), tokens % 2), targets),
    )
    for name in ("path", "num_accepted", "bonus"):
        assert torch.equal(getattr(greedy, name), getattr(expected, name)), name


def test_calls_take_turns_and_are_warmed_up() -> None:
    order: list[str] = []
    machine = Machine(CPU, "fake", 1.0, "", 1.0, "", 64)
    calls = {name: (lambda name=name: order.append(name)) for name in "ab"}
    timings = measure(calls, Stopwatch(machine), repeats=6, seconds=0)
    assert "".join(order) == "aaabbb" + "ab" * 5  # five rounds although no time is left
    assert all(0 < t.minimum <= t.median for t in timings.values())


def test_rates_are_measured_on_the_device() -> None:
    machine = measured_machine(CPU, torch.float64, megabytes=1, side=16)
    assert machine.bandwidth > 1e6 and machine.arithmetic > 1e6 and machine.cache_bytes >= 2**10
    assert machine.bandwidth_how == "sum of 1 MiB" and "matmul of 16 cubed in float" in machine.arithmetic_how


def test_presets() -> None:
    llama = list(PRESETS["llama-3.1-8b"].shapes(torch.bfloat16, 16))
    assert len(llama) == 9 * 4 and {shape.nodes for shape in llama} == {1, 5, 9, 17}
    assert str(llama[0]) == "B1 H32/8 D128 S4096 n1 bf16"
    assert str(llama[-1]) == "B15 H32/8 D128 S65536 n17 bf16"


def test_bad_command_lines_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for line, because in (
        (["--heads", "8/2"], "is not query heads/KV heads/head dimension"),
        (["--operations", "attend"], "invalid choice"),
        (["--preset", "large"], "invalid choice"),
    ):
        with pytest.raises(SystemExit):
            bench.parse(line)
        assert because in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_a_device_that_is_not_here_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench.parse(["--device", "cuda"])
    assert "torch finds no CUDA device here" in capsys.readouterr().err
