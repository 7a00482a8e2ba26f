"""Which backend serves paged tree attention, why, and what happens to layers that it cannot serve."""

from __future__ import annotations

import gc
import importlib.util
import logging
import sys
from dataclasses import replace

import fake_flashinfer
import flashinfer_tools
import paged_tools
import pytest
import torch

from specplug_kernels import (
    PAGED_KERNELS,
    PagedShape,
    ScoreRule,
    explain_paged,
    flashinfer_failure,
    flashinfer_paths,
    flashinfer_wrappers,
    paged_choice,
    paged_dispatch,
    paged_tree_attention,
)
from specplug_kernels.flashinfer_failure import FlashInferError, UnplannedError
from specplug_kernels.flashinfer_paths import why_not_flashinfer

SHAPE = (17, 32, 8, 128)
NO_FLASHINFER = "the flashinfer package is not installed (pip install 'specplug[flashinfer]' brings it)"
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="needs the triton package (specplug[triton])"
)


def only_installed(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    """Of the optional packages, only these seem to be installed."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name in packages else None)


@pytest.fixture
def on_paper(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """FlashInfer seems to be installed, Triton not. Obstacles put in here, path by path, seem to keep FlashInfer from serving."""
    obstacles: dict[str, str] = {}
    only_installed(monkeypatch, "flashinfer")

    def with_obstacles(shape: PagedShape, num_nodes: int, path: str, num_queries: int) -> str | None:
        return obstacles.get(path) or why_not_flashinfer(shape, num_nodes, path, num_queries=num_queries)

    monkeypatch.setattr(paged_choice, "why_not_flashinfer", with_obstacles)
    return obstacles


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """`fake_flashinfer.py`, which is NOT FlashInfer, serves a CPU in its place; Triton seems to be missing."""
    gc.collect()  # an earlier test's plan that errors have tied into a circle would give its wrapper back in the middle of this one
    monkeypatch.setitem(sys.modules, "flashinfer", fake_flashinfer)
    monkeypatch.setattr(flashinfer_paths, "DEVICE_TYPES", ("cpu",))
    monkeypatch.setattr(flashinfer_wrappers, "processors", lambda device: fake_flashinfer.PROCESSORS)
    monkeypatch.setattr(flashinfer_wrappers, "_idle", {})
    monkeypatch.setattr(flashinfer_wrappers, "_workspaces", {})
    monkeypatch.setattr(flashinfer_failure, "_failures", {})
    only_installed(monkeypatch, "flashinfer")


def test_a_cpu_gets_torch_with_a_reason() -> None:
    assert explain_paged(*SHAPE, device="cpu") == (
        "torch: FlashInfer's kernels are for CUDA devices, not cpu; Triton compiles for GPUs, and the query is on a CPU"
    )
    assert "the Triton kernel was written for CUDA devices, not mps" in explain_paged(*SHAPE, device="mps")
    assert explain_paged(*SHAPE, kernel="torch") == "torch: asked for by name"
    assert paged_tools.planned(paged_tools.make_case([4]), "auto").name == "torch"


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    known = "auto, torch, triton, flashinfer, flashinfer-merge, flashinfer-mask, flashinfer-bitmap"
    with pytest.raises(ValueError, match=f"unknown kernel 'fast'; known: {known}"):
        explain_paged(*SHAPE, kernel="fast")
    case = paged_tools.make_case([4])
    with pytest.raises(ValueError, match="unknown kernel 'fast'"):
        paged_tree_attention(*case.arguments(), kernel="fast")
    with pytest.raises(ValueError, match="kernel='flashinfer-mask' cannot be used: FlashInfer's kernels are for CUDA"):
        paged_tree_attention(*case.arguments(), kernel="flashinfer-mask")


@needs_triton
def test_a_gpu_without_flashinfer_gets_triton_as_far_as_it_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    only_installed(monkeypatch, "triton")
    rows = "packed rows (queries times query heads a KV head), the cache read"
    assert explain_paged(33, 32, 8, 128) == f"triton: 132 {rows} 2 times; {NO_FLASHINFER}"
    assert explain_paged(33, 32, 8, 128, num_queries=4).startswith(f"triton: 16 {rows} 1 times")
    assert explain_paged(33, 32, 8, 128, kernel="triton") == "triton: asked for by name"
    for wrong, obstacle in (({"dtype": torch.float64}, "float64"), ({"head_dim": 576}, "up to 256, not 576")):
        shape = {"num_nodes": 5, "query_heads": 32, "kv_heads": 8, "head_dim": 128} | wrong
        assert explain_paged(**shape).startswith(f"torch: {NO_FLASHINFER}; it takes ")
        assert explain_paged(**shape).endswith(obstacle)
        with pytest.raises(ValueError, match=f"kernel='triton' cannot be used: it takes .*{obstacle}"):
            explain_paged(**shape, kernel="triton")


def test_without_either_torch_serves_and_the_remedies_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    only_installed(monkeypatch)
    assert explain_paged(*SHAPE) == (
        f"torch: {NO_FLASHINFER}; the triton package is not installed (pip install 'specplug[triton]' brings it)"
    )
    case = paged_tools.make_case([4])
    with pytest.raises(ValueError, match=r"not installed \(pip install .*kernel='torch' or 'auto' can"):
        paged_tree_attention(*case.arguments(), kernel="triton")
    for kernel in ("flashinfer", "flashinfer-merge"):
        with pytest.raises(ValueError, match=f"kernel={kernel!r} cannot be used: the flashinfer package is not"):
            explain_paged(*SHAPE, kernel=kernel)
    with pytest.raises(ImportError, match="pool_table needs the triton package"):
        from specplug_kernels import pool_table  # noqa: F401


def test_a_gpu_gets_flashinfers_best_path(on_paper: dict[str, str]) -> None:
    """Preferred in the order of a table of guesses, which also depends on the packed rows."""
    assert explain_paged(*SHAPE) == (
        "flashinfer-merge: the fastest for 68 packed rows, by a guess that no measurement has confirmed"
    )
    assert explain_paged(*SHAPE, kernel="flashinfer") == "flashinfer-merge: asked for by name"
    on_paper["merge"] = "it does not merge"
    assert explain_paged(*SHAPE).startswith("flashinfer-bitmap: the fastest for 68 packed rows")
    assert explain_paged(*SHAPE).endswith("; it does not merge")
    assert explain_paged(*SHAPE, kernel="flashinfer") == "flashinfer-bitmap: asked for by name"
    assert explain_paged(17, 32, 4, 128).startswith("flashinfer-mask: the fastest for 136 packed rows")
    assert explain_paged(17, 32, 4, 128).endswith(", by a guess that no measurement has confirmed; it does not merge")
    assert explain_paged(*SHAPE, num_queries=4).startswith("flashinfer-mask: the fastest for 16 packed rows")
    assert "the bitmap kernel wants all 17 nodes to ask, not 4" in explain_paged(*SHAPE, num_queries=4)
    with pytest.raises(ValueError, match="kernel='flashinfer-merge' cannot be used: it does not merge; kernel='torch'"):
        explain_paged(*SHAPE, kernel="flashinfer-merge")
    on_paper |= {"bitmap": "it has no bits", "mask": "it has no mask"}
    obstacles = "it does not merge; it has no bits; it has no mask"
    assert explain_paged(*SHAPE).startswith(f"torch: {obstacles}; the triton package is not installed")
    with pytest.raises(
        ValueError, match=f"kernel='flashinfer' cannot be used: {obstacles}; kernel='torch' or 'auto' can"
    ):
        explain_paged(*SHAPE, kernel="flashinfer")


@pytest.mark.parametrize("wrong", [{"head_dim": 80}, {"dtype": torch.float32}, {"page_size": 0}])
def test_what_flashinfer_is_asked_is_the_shape_at_hand(on_paper: dict[str, str], wrong: dict) -> None:
    shape = {"num_nodes": 17, "query_heads": 32, "kv_heads": 8, "head_dim": 128} | wrong
    assert explain_paged(**shape).startswith("torch: ")
    with pytest.raises(ValueError, match="kernel='flashinfer' cannot be used: "):
        explain_paged(**shape, kernel="flashinfer")


@pytest.mark.parametrize("kernel", [name for name in PAGED_KERNELS if name not in ("torch", "triton")])
@pytest.mark.usefixtures("stand_in")
def test_flashinfer_serves_plain_layers(monkeypatch: pytest.MonkeyPatch, kernel: str) -> None:
    monkeypatch.setattr(paged_dispatch, "TorchPagedAttention", lambda *_: pytest.fail("planned for torch"))
    case = paged_tools.make_case([20, 4], 5, dtype=torch.float16)
    plan = paged_tools.planned(case, kernel)
    path = kernel.removeprefix("flashinfer-") if "-" in kernel else "merge"
    guess = "the fastest for 15 packed rows, by a guess that no measurement has confirmed"
    assert (plan.name, plan.reason) == (f"flashinfer-{path}", guess if kernel == "auto" else "asked for by name")
    for _ in range(3):
        flashinfer_tools.check(case, plan(case.query, case.key_pages, case.value_pages, case.rule))


@pytest.mark.usefixtures("stand_in")
def test_layers_that_flashinfer_does_not_serve_go_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those with sinks, by one plan for all of them."""
    case = paged_tools.make_case([20, 4], 5, queries=2, dtype=torch.float16)
    plan = paged_tools.planned(case, "flashinfer-merge")
    special = replace(case.rule, sinks=torch.ones(6))
    for rule in (special, case.rule, special):
        layer = replace(case, rule=rule)
        flashinfer_tools.check(layer, plan(layer.query, layer.key_pages, layer.value_pages, rule))
        monkeypatch.setattr(paged_dispatch, "TorchPagedAttention", lambda *_: pytest.fail("planned again"))
    assert plan.name == "flashinfer-merge"
    with pytest.raises(ValueError, match="5 query heads are not a multiple of 2"):
        plan(case.query[:, :, :5], case.key_pages, case.value_pages, case.rule)


# --- a FlashInfer that is installed and does not work

NO_COMPILER = "Could not find nvcc and default cuda_home='/usr/local/cuda' doesn't exist"
SAID = rf"FlashInfer failed with heads of 64 in torch.float16 (RuntimeError: {NO_COMPILER})"
WRAPPER = fake_flashinfer.BatchPrefillWithPagedKVCacheWrapper
PLACES = {  # where it may fail: with the package, and with kernels that are built when they are first wanted
    "import": (importlib, "import_module"),
    "wrapper": (fake_flashinfer, "BatchPrefillWithPagedKVCacheWrapper"),
    "plan": (WRAPPER, "plan"),
    "run": (WRAPPER, "run"),
    "merge": (fake_flashinfer, "merge_state_in_place"),
}


def break_it(monkeypatch: pytest.MonkeyPatch, place: str, error: Exception) -> list[int]:
    """The stand-in raises `error` there; each time is a 1 in the list."""
    times: list[int] = []
    holder, name = PLACES[place]
    whole = getattr(holder, name)

    def broken(*given: object, **options: object) -> object:
        if place == "import" and given != ("flashinfer",):
            return whole(*given, **options)
        times.append(1)
        raise error

    monkeypatch.setattr(holder, name, broken)
    return times


def attend(plan: object, case: paged_tools.Case) -> tuple[torch.Tensor, torch.Tensor]:
    return plan(case.query, case.key_pages, case.value_pages, case.rule)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.usefixtures("stand_in")
def test_auto_goes_on_without_a_flashinfer_that_fails(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, place: str
) -> None:
    times = break_it(monkeypatch, place, RuntimeError(f"{NO_COMPILER}\nand a hundred lines more"))
    case = paged_tools.make_case([20, 4], 5, dtype=torch.float16)
    with caplog.at_level(logging.INFO, logger="specplug_kernels"):
        begun = paged_tools.planned(case, "auto"), paged_tools.planned(case, "auto")
        for plan in begun:
            assert plan.name == "flashinfer-merge"
            for _ in range(3):
                flashinfer_tools.check(case, attend(plan, case))
            assert plan.name == "torch" and plan.reason.endswith(SAID)
        later = paged_tools.planned(case, "auto")
        flashinfer_tools.check(case, attend(later, case))
    assert later.name == "torch" and later.reason.startswith(SAID)
    assert len(times) == len(begun)  # once by each plan that was made before anybody knew
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert SAID in caplog.text and "kernel='auto' takes torch for them" in caplog.text and "hundred" not in caplog.text


@pytest.mark.usefixtures("stand_in")
def test_what_failed_is_left_alone_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    case = paged_tools.make_case([20, 4], 5, dtype=torch.float16)
    with monkeypatch.context() as broken:
        break_it(broken, "plan", RuntimeError(NO_COMPILER))
        attend(paged_tools.planned(case, "auto"), case)
    assert paged_tools.planned(case, "auto").name == "torch"
    for kernel in ("flashinfer", "flashinfer-mask"):  # asked for by name it is tried again
        flashinfer_tools.check(case, attend(paged_tools.planned(case, kernel), case))
    others = paged_tools.make_case([9], dim=128, dtype=torch.float16), paged_tools.make_case([9], dtype=torch.bfloat16)
    for other in others:
        assert paged_tools.planned(other, "auto").name == "flashinfer-merge"
    shape = {"num_nodes": 5, "query_heads": 6, "kv_heads": 2, "dtype": torch.float16, "device": "cpu"}
    assert explain_paged(head_dim=64, **shape).startswith(f"torch: {SAID}; Triton compiles for GPUs")
    assert explain_paged(head_dim=128, **shape).startswith("flashinfer-merge: ")
    assert explain_paged(head_dim=64, kernel="flashinfer", **shape) == "flashinfer-merge: asked for by name"


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.usefixtures("stand_in")
def test_a_flashinfer_that_was_asked_for_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, place: str
) -> None:
    error = RuntimeError(NO_COMPILER)
    break_it(monkeypatch, place, error)
    case = paged_tools.make_case([20, 4], 5, dtype=torch.float16)
    with caplog.at_level(logging.INFO, logger="specplug_kernels"):
        for kernel in ("flashinfer", "flashinfer-merge"):
            plan = paged_tools.planned(case, kernel)
            for _ in range(2):
                with pytest.raises(
                    FlashInferError, match=r"nvcc and ninja .*flashinfer-jit-cache.*kernel='triton'"
                ) as found:
                    attend(plan, case)
                assert SAID in str(found.value) and found.value.__cause__ is error
    assert not caplog.records


@pytest.mark.parametrize("kernel", ["auto", "flashinfer"])
@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), UnplannedError("outside the CUDA graph")]
)
@pytest.mark.usefixtures("stand_in")
def test_what_is_not_flashinfers_fault_is_raised_as_it_is(
    monkeypatch: pytest.MonkeyPatch, kernel: str, error: Exception
) -> None:
    """It goes on with FlashInfer when there is memory again, or when the layer has been planned."""
    case = paged_tools.make_case([20, 4], 5, dtype=torch.float16)
    with monkeypatch.context() as broken:
        break_it(broken, "run", error)
        with pytest.raises(type(error)) as found:
            attend(paged_tools.planned(case, kernel), case)
        assert found.value is error
    plan = paged_tools.planned(case, kernel)
    flashinfer_tools.check(case, attend(plan, case))
    assert plan.name == "flashinfer-merge"


def test_explaining_a_layer_that_flashinfer_does_not_serve(on_paper: dict[str, str]) -> None:
    plain, special = ScoreRule(0.1, logit_cap=30.0, window=9), ScoreRule(0.1, sinks=torch.ones(32))
    assert explain_paged(*SHAPE, rule=plain).startswith("flashinfer-merge: the fastest")
    assert explain_paged(*SHAPE, rule=special).startswith("torch: FlashInfer's paths take no sinks; the triton package")
    assert explain_paged(*SHAPE, rule=special, kernel="torch") == "torch: asked for by name"


@pytest.mark.usefixtures("stand_in")
def test_tensors_that_flashinfer_does_not_serve_go_elsewhere() -> None:
    narrow = paged_tools.make_case([20, 4], value_dim=32, dtype=torch.float16)
    mixed = paged_tools.make_case([20, 4], dtype=torch.float16)
    mixed = replace(mixed, key_pages=mixed.key_pages.float())
    for case in (narrow, mixed):
        plan = paged_tools.planned(case, "flashinfer")
        paged_tools.check(case, plan(case.query, case.key_pages, case.value_pages, case.rule))


@needs_triton
def test_tensors_that_triton_does_not_serve_go_to_torch_unless_it_was_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Keys of another dtype than the query's."""
    only_installed(monkeypatch, "triton")
    case = paged_tools.make_case([20, 4])
    case = replace(case, query=case.query.half())
    plan = paged_tools.planned(case, "auto", device="cuda")
    assert plan.name == "triton" and plan.reason.startswith("15 packed rows")
    paged_tools.check(case, plan(case.query, case.key_pages, case.value_pages, case.rule))
    strict = paged_tools.planned(case, "triton", device="cuda")
    with pytest.raises(ValueError, match="query, keys and values of one dtype, not torch.float16"):
        strict(case.query, case.key_pages, case.value_pages, case.rule)
