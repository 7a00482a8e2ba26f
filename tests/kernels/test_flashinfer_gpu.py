"""FlashInfer's real kernels on a CUDA device, against the torch backend in float64. The first run builds them: minutes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import flashinfer_tools
import paged_tools
import pytest
import torch
from flashinfer_tools import PATHS, check, layer, make_case, plan

from specplug_kernels.flashinfer_graph import FlashInferGraph

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
pytest.importorskip("flashinfer", reason="needs the flashinfer package (specplug[flashinfer])")

DEVICE = torch.device("cuda")
TANH_ERROR = 2**-10
"""Of PTX's tanh.approx.f32, relative, times two: what a capped score may be off by, in units of the cap."""


def on_gpu(lengths: list[int], nodes: int, **options: object) -> paged_tools.Case:
    return flashinfer_tools.moved(make_case(lengths, nodes, **options), DEVICE)


def verify(case: paged_tools.Case, path: str) -> None:
    result = layer(plan(case, path, host_rows(case)), case)
    # rows split among processors keep their partial results in half precision too
    split = 2 * torch.finfo(case.query.dtype).eps
    check(case, result, slack=split + TANH_ERROR * (case.rule.logit_cap or 0.0))


def host_rows(case: paged_tools.Case) -> object:
    return case.rows(lengths_host=case.lengths.tolist())


@contextmanager
def nothing_waits() -> Iterator[None]:
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("nodes", [1, 5, 17, 32])
@pytest.mark.parametrize("page", [1, 16, 64])
def test_every_path_is_what_torch_computes(path: str, nodes: int, page: int) -> None:
    """Slots that nobody sees hold NaN and inf, and pages in which nobody sees anything do not exist."""
    verify(on_gpu([130, 64, 0, 1, 2000], nodes, page=page, kv_heads=2, groups=4, dim=128), path)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", flashinfer_tools.HALVES)
def test_dtypes(path: str, dtype: torch.dtype) -> None:
    verify(on_gpu([37, 300], 9, dtype=dtype, kv_heads=2, groups=4, dim=128, strided=True), path)


@pytest.mark.parametrize("path", ["merge", "mask"])
@pytest.mark.parametrize("dim", [64, 256])
def test_head_dimensions(path: str, dim: int) -> None:
    verify(on_gpu([37, 300], 9, kv_heads=3, groups=16, dim=dim), path)


@pytest.mark.parametrize("path", ["merge", "mask"])
def test_parts_of_a_tree_and_more_than_a_tile(path: str) -> None:
    verify(on_gpu([37, 0, 300], 20, queries=6, kv_heads=2, groups=4, dim=128), path)
    verify(on_gpu([37, 0, 300], 70, kv_heads=2, groups=4, dim=128), path)


@pytest.mark.parametrize("path", ["merge", "mask"])
@pytest.mark.parametrize(
    "rule", [{"logit_cap": 30.0}, {"window": 64}, {"window": 3}, {"logit_cap": 2.0, "window": 100}]
)
def test_rules(path: str, rule: dict[str, float]) -> None:
    verify(on_gpu([37, 0, 300], 9, kv_heads=2, groups=4, dim=128, **rule), path)


def test_the_bitmap_kernel_caps() -> None:
    verify(on_gpu([37, 0, 300], 9, kv_heads=2, groups=4, dim=128, logit_cap=30.0), "bitmap")


@pytest.mark.parametrize("path", PATHS)
def test_a_node_that_sees_nothing_gets_zeros(path: str) -> None:
    ancestors = torch.tensor([[[True, False], [False, False]]])
    case = on_gpu([0, 9], 2, ancestors=ancestors, kv_heads=2, groups=4, dim=128)
    out, lse = layer(plan(case, path, host_rows(case)), case)
    assert out[0, 1].eq(0).all() and lse[0, 1].eq(-torch.inf).all()
    verify(case, path)


@pytest.mark.parametrize("path", PATHS)
def test_planning_waits_for_nothing(path: str) -> None:
    case = on_gpu([37, 300], 9, kv_heads=2, groups=4, dim=128)
    rows = host_rows(case)
    layer(plan(case, path, rows), case)  # builds what must be built
    with nothing_waits():
        result = layer(plan(case, path, rows), case)
    check(case, result, slack=2 * torch.finfo(torch.bfloat16).eps)


@pytest.mark.parametrize("path", PATHS)
def test_a_graph_replays_the_newly_planned_batch(path: str) -> None:
    shape = {"kv_heads": 2, "groups": 4, "dim": 128}
    first, second = on_gpu([37, 300], 9, **shape), on_gpu([290, 0], 9, **shape)
    graph = FlashInferGraph(num_rows=2, num_queries=9, num_nodes=9, max_length=300, page_size=16, device=DEVICE)
    pages = max(len(first.key_pages), len(second.key_pages))
    pools = [torch.zeros(pages, *first.key_pages.shape[1:], dtype=torch.bfloat16, device=DEVICE) for _ in range(2)]
    query = torch.empty_like(first.query)

    def fill(case: paged_tools.Case) -> None:
        query.copy_(case.query)
        for pool, given in zip(pools, (case.key_pages, case.value_pages), strict=True):
            pool[: len(given)].copy_(given)

    fill(first)
    attention = plan(first, path, host_rows(first), graph=graph)
    attention(query, *pools, first.rule)
    attention = plan(first, path, host_rows(first), graph=graph)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        out, lse = attention(query, *pools, first.rule)
    for case in (first, second, first):
        fill(case)
        plan(case, path, host_rows(case), graph=graph)
        captured.replay()
        torch.cuda.synchronize()
        check(case, (out.clone(), lse.clone()), slack=2 * torch.finfo(torch.bfloat16).eps)
