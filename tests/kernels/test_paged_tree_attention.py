"""Paged tree attention in torch against a loop in fp64, and the choice of a backend. Triton's: `interpreted/`."""

from __future__ import annotations

import importlib.util

import paged_tools
import pytest
import torch
from hypothesis import given, settings

from specplug_kernels import ScoreRule, ancestor_bitmap, explain_paged, paged_rows, paged_tree_attention
from specplug_kernels.paging import ancestors_of

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@settings(max_examples=40)
@given(case=paged_tools.cases(dims=(8, 16, 24), longest=90, dtypes=DTYPES))
def test_ragged_rows_with_every_option(case: paged_tools.Case) -> None:
    paged_tools.check(case, paged_tree_attention(*case.arguments()))


@pytest.mark.parametrize("nodes", [1, 31, 32, 33, 64, 129])
def test_trees_of_every_size(nodes: int) -> None:
    case = paged_tools.make_case([70, 3], nodes, groups=2, dim=8)
    paged_tools.check(case, paged_tree_attention(*case.arguments(max_length=80)))
    assert torch.equal(ancestors_of(case.rows().bitmap), case.ancestors)


def test_a_bitmap_has_a_bit_a_node() -> None:
    ancestors = torch.zeros(1, 40, 40, dtype=torch.bool)
    ancestors[0, 3, [0, 5, 31, 33]] = True
    assert ancestor_bitmap(ancestors)[0, 3].tolist() == [1 + 2**5 - 2**31, 2]
    everything = torch.rand(2, 129, 129) < 0.5
    assert torch.equal(ancestors_of(ancestor_bitmap(everything)), everything)


@pytest.mark.parametrize("sinks", [False, True])
def test_a_node_that_sees_nothing_gets_zeros(sinks: bool) -> None:
    """A padding node that does not even see itself, in a row without committed tokens."""
    ancestors = torch.tensor([[[True, False], [False, False]]])
    case = paged_tools.make_case([0, 9], 2, ancestors=ancestors, sinks=torch.randn(6) if sinks else None)
    out, lse = result = paged_tree_attention(*case.arguments())
    assert out[0, 1].eq(0).all()
    assert torch.equal(lse[0, 1], case.rule.sinks if sinks else torch.full((6,), -torch.inf))
    paged_tools.check(case, result)


def test_nothing_is_modified() -> None:
    case = paged_tools.make_case([20], window=7)
    given = [t.clone() for t in (case.query, case.key_pages, case.value_pages, case.page_indices, case.lengths)]
    paged_tree_attention(*case.arguments())
    for before, after in zip(
        given, (case.query, case.key_pages, case.value_pages, case.page_indices, case.lengths), strict=True
    ):
        torch.testing.assert_close(before, after, equal_nan=True, atol=0, rtol=0)


def test_an_empty_batch() -> None:
    rows = paged_rows(
        torch.zeros(1, dtype=torch.int32),
        torch.zeros(0, dtype=torch.int32),
        torch.zeros(0, dtype=torch.int32),
        torch.ones(1, 1, 1, dtype=torch.bool),
    )
    pool = torch.zeros(3, 16, 2, 8)
    assert paged_tree_attention(torch.zeros(0, 1, 4, 8), pool, pool, rows, ScoreRule(1.0))[0].shape == (0, 1, 4, 8)


def test_what_does_not_fit_is_named() -> None:
    case = paged_tools.make_case([20, 4], 3)
    query, keys, values, rows, rule = case.arguments()
    with pytest.raises(ValueError, match=r"query of \(2, 2, 6, 64\) does not fit: \[2, 3, Hq, D\]"):
        paged_tree_attention(query[:, :2], keys, values, rows, rule)
    with pytest.raises(ValueError, match=r"\[pages, page, Hkv, 64\]"):
        paged_tree_attention(query, keys[..., :32], values, rows, rule)
    with pytest.raises(ValueError, match="5 query heads are not a multiple of 2"):
        paged_tree_attention(query[:, :, :5], keys, values, rows, rule)
    with pytest.raises(ValueError, match="sinks of"):
        paged_tree_attention(query, keys, values, rows, ScoreRule(1.0, sinks=torch.zeros(2)))
    with pytest.raises(ValueError, match="20 committed tokens, more than max_length=19"):
        case.rows(max_length=19)
    with pytest.raises(ValueError, match="ancestors of 2 rows do not fit a batch of 1"):
        paged_rows(case.page_indptr[:2], case.page_indices, case.lengths[:1], case.ancestors)
    with pytest.raises(ValueError, match="lengths must be int32 or int64"):
        paged_rows(case.page_indptr, case.page_indices, case.lengths.float(), case.ancestors)
    with pytest.raises(ValueError, match="ancestors must be bool"):
        paged_rows(case.page_indptr, case.page_indices, case.lengths, case.ancestors.int())
    with pytest.raises(ValueError, match="window"):
        ScoreRule(1.0, window=0)
    with pytest.raises(ValueError, match="logit_cap"):
        ScoreRule(1.0, logit_cap=0.0)


def test_a_backend_is_chosen_with_a_reason() -> None:
    assert explain_paged(17, 32, 8, 128, device="cpu").startswith("torch: Triton compiles for GPUs")
    assert explain_paged(17, 32, 8, 128, device="mps").startswith("torch: the Triton kernel was written for CUDA")
    assert explain_paged(17, 32, 8, 128, kernel="torch") == "torch: asked for by name"
    with pytest.raises(ValueError, match="unknown kernel 'fast'; known: auto, torch, triton"):
        explain_paged(17, 32, 8, 128, kernel="fast")


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs the triton package (specplug[triton])")
def test_a_gpu_gets_triton_as_far_as_it_goes() -> None:
    assert explain_paged(33, 32, 8, 128) == (
        "triton: 132 packed rows (nodes times query heads a KV head), the cache read 2 times"
    )
    assert explain_paged(5, 32, 8, 128, dtype=torch.float64).startswith("torch: it takes float16, bfloat16 and float32")
    assert explain_paged(5, 32, 8, 576).startswith("torch: it takes head dimensions up to 256, not 576")
    with pytest.raises(ValueError, match="kernel='triton' cannot be used: it takes head dimensions"):
        explain_paged(5, 32, 8, 576, kernel="triton")


def test_without_triton_torch_serves_and_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert explain_paged(5, 32, 8, 128).startswith(
        "torch: the triton package is not installed (pip install 'specplug[triton]'"
    )
    case = paged_tools.make_case([4])
    with pytest.raises(ValueError, match=r"not installed \(pip install .*kernel='torch' or 'auto' can"):
        paged_tree_attention(*case.arguments(), kernel="triton")
    with pytest.raises(ImportError, match="pool_table needs the triton package"):
        from specplug_kernels import pool_table  # noqa: F401
