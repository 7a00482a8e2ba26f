"""Cases for FlashInfer's paths, and how near they must come to the torch backend."""

from __future__ import annotations

from dataclasses import replace

import paged_tools
import torch
from hypothesis import strategies as st
from torch import Tensor

from specplug_kernels import PagedRows
from specplug_kernels.flashinfer_graph import FlashInferGraph
from specplug_kernels.flashinfer_paths import FLASHINFER_PATHS, largest_tile
from specplug_kernels.paged_tree_attention_flashinfer import FlashInferAttention, plan_flashinfer
from specplug_kernels.paged_tree_attention_torch import paged_tree_attention_torch

PATHS = tuple(FLASHINFER_PATHS)
HALVES = (torch.bfloat16, torch.float16)


def make_case(lengths: list[int], nodes: int = 5, **options: object) -> paged_tools.Case:
    return paged_tools.make_case(lengths, nodes, **{"dtype": torch.bfloat16, **options})


def plan(
    case: paged_tools.Case, path: str, rows: PagedRows | None = None, graph: FlashInferGraph | None = None
) -> FlashInferAttention:
    return plan_flashinfer(
        case.rows(lengths_host=case.lengths.tolist()) if rows is None else rows,
        paged_tools.shape_of(case),
        path=path,
        graph_buffers=graph,
    )


def layer(attention: FlashInferAttention, case: paged_tools.Case) -> tuple[Tensor, Tensor]:
    return attention(case.query, case.key_pages, case.value_pages, case.rule)


def check(
    case: paged_tools.Case, result: tuple[Tensor, Tensor], *, slack: float = 0.0, rows: PagedRows | None = None
) -> None:
    """Against the torch backend in float64.

    Half precision rounds the weights, the output of each part and the merged one: half a unit in the last place each, of at most
    the largest value. The sum of the weights is one of rounded weights, so its logarithm is off by half a unit too. `slack`: what
    else a score may be off by.
    """
    out, lse = result
    doubled = (tensor.double() for tensor in (case.query, case.key_pages, case.value_pages))
    expected, expected_lse = paged_tree_attention_torch(*doubled, case.rows() if rows is None else rows, case.rule)
    assert out.shape == expected.shape and out.dtype == case.query.dtype and out.is_contiguous()
    assert lse.dtype == torch.float32
    eps = torch.finfo(case.query.dtype).eps
    largest = float(case.value_pages.double().nan_to_num(0, 0, 0).abs().max())
    torch.testing.assert_close(out.double(), expected, atol=(2 * eps + 2 * slack) * largest + 2e-5, rtol=0)
    torch.testing.assert_close(lse.double(), expected_lse, atol=eps + slack + 2e-5, rtol=0)


def serves(path: str, case: paged_tools.Case) -> bool:
    """Whether a path takes as many queries as a case has."""
    queries, heads = case.query.shape[1:3]
    whole = queries == case.ancestors.shape[1]
    return path != "bitmap" or (
        whole and queries * heads // case.key_pages.shape[2] <= largest_tile(case.query.shape[3])
    )


def moved(case: paged_tools.Case, device: torch.device) -> paged_tools.Case:
    tensors = {name: value.to(device) for name, value in vars(case).items() if isinstance(value, Tensor)}
    return replace(case, **tensors)


@st.composite
def cases(draw: st.DrawFn, longest: int, most_nodes: int = 12) -> paged_tools.Case:
    """Ragged rows: any part of a tree, any page size and head ratio, windows and caps."""
    torch.manual_seed(draw(st.integers(0, 2**16)))
    lengths = draw(st.lists(st.just(0) | st.integers(0, longest), min_size=1, max_size=4))
    nodes = draw(st.sampled_from(range(1, most_nodes + 1)))
    return make_case(
        lengths,
        nodes,
        queries=draw(st.none() | st.sampled_from(range(1, nodes + 1))),
        kv_heads=draw(st.integers(1, 3)),
        groups=draw(st.integers(1, 8)),
        dim=draw(st.sampled_from((64, 64, 128))),
        page=draw(st.sampled_from((1, 4, 16))),
        dtype=draw(st.sampled_from(HALVES)),
        shared=draw(st.booleans()),
        strided=draw(st.booleans()),
        logit_cap=draw(st.sampled_from((None, None, 1.5, 30.0))),
        window=draw(st.sampled_from((None, None, None, 1, 4, 50, 1000))),
    )
