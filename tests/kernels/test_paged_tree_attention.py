"""Paged tree attention in torch against a loop in fp64. Triton's: `interpreted/`; the choice: `test_paged_choice.py`."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import paged_tools
import pytest
import torch
from hypothesis import given, settings

from specplug_kernels import ScoreRule, ancestor_bitmap, paged_rows, paged_tree_attention
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
    assert torch.equal(ancestors_of(case.rows().bitmap, nodes), case.ancestors)


def test_a_bitmap_has_a_bit_a_node() -> None:
    ancestors = torch.zeros(1, 40, 40, dtype=torch.bool)
    ancestors[0, 3, [0, 5, 31, 33]] = True
    assert ancestor_bitmap(ancestors)[0, 3].tolist() == [1 + 2**5 - 2**31, 2]
    everything = torch.rand(2, 129, 129) < 0.5
    assert torch.equal(ancestors_of(ancestor_bitmap(everything), 129), everything)
    assert torch.equal(ancestors_of(ancestor_bitmap(everything[:, 40:42]), 129), everything[:, 40:42])


@pytest.mark.parametrize("window", [None, 1, 3, 20])
@pytest.mark.parametrize("page", [1, 16, 64])
def test_a_level_at_a_time_gives_the_rows_of_the_whole_tree(page: int, window: int | None) -> None:
    """As a draft grows a tree: each level asks before anything stands behind it."""
    widths = (1, 3, 30, 4)
    trees = torch.stack([paged_tools.levelled_ancestors(widths) for _ in range(3)])
    case = paged_tools.make_case([70, 64, 0], sum(widths), ancestors=trees, dim=8, page=page, window=window)
    whole, whole_lse = paged_tree_attention(*case.arguments())
    paged_tools.check(case, (whole, whole_lse))
    for first, stop in pairwise((0, 1, 4, 34, 38)):
        out, lse = paged_tree_attention(*case.level(first, stop).arguments())
        torch.testing.assert_close(out, whole[:, first:stop], atol=1e-6, rtol=0)
        torch.testing.assert_close(lse, whole_lse[:, first:stop], atol=1e-6, rtol=0)


def test_one_plan_serves_layers_of_different_rules() -> None:
    """Windows in turn: what was looked up for one is not used for another."""
    case = paged_tools.make_case([70, 9], 6, queries=4)
    plan = paged_tools.planned(case, "torch")
    assert (plan.name, plan.reason) == ("torch", "asked for by name")
    sinks = torch.randn(6)
    layers = [ScoreRule(0.1), ScoreRule(0.1, window=3), ScoreRule(0.2, logit_cap=1.5), ScoreRule(0.1, sinks=sinks)]
    for rule in layers * 2:
        layer = replace(case, rule=rule, query=torch.randn_like(case.query))
        paged_tools.check(layer, plan(layer.query, layer.key_pages, layer.value_pages, rule))
    with pytest.raises(ValueError, match="5 query heads are not a multiple of 2"):
        plan(case.query[:, :, :5], case.key_pages, case.value_pages, case.rule)


def test_lengths_that_the_host_knows() -> None:
    case = paged_tools.make_case([20, 4], 3)
    told = case.rows(lengths_host=[20, 4])
    assert (told.lengths_host, told.max_length, case.rows().max_length) == ((20, 4), 20, None)
    assert case.rows(lengths_host=(20, 4), max_length=32).max_length == 32
    assert told.num_nodes == told.num_queries == 3
    paged_tools.check(case, paged_tree_attention(*case.arguments(lengths_host=[20, 4])))
    for wrong in ([4, 20], [20], [20, 4, 4]):
        with pytest.raises(ValueError, match="are not the lengths of the 2 rows"):
            case.rows(lengths_host=wrong)
    with pytest.raises(ValueError, match="20 committed tokens, more than max_length=19"):
        case.rows(lengths_host=[20, 4], max_length=19)
    elsewhere = replace(case, lengths=case.lengths.to("meta"))  # a device is not asked, so only their number is checked
    assert elsewhere.rows(lengths_host=[7, 8]).max_length == 8
    with pytest.raises(ValueError, match="are not the lengths of the 2 rows"):
        elsewhere.rows(lengths_host=[20])


def test_nodes_that_do_not_ask() -> None:
    case = paged_tools.make_case([20, 4], 5, queries=2)
    rows = case.rows()
    assert (rows.num_nodes, rows.num_queries, tuple(rows.bitmap.shape), tuple(rows.depths.shape)) == (
        5,
        2,
        (2, 2, 1),
        (2, 5),
    )
    with pytest.raises(ValueError, match=r"a query of \(2, 5, 6, 64\) does not fit: \[2, 2, Hq, D\]"):
        paged_tree_attention(torch.zeros(2, 5, 6, 64), *case.arguments()[1:])
    asking = case.ancestors[:, 3:]
    with pytest.raises(ValueError, match="depths of all 5 nodes must be given: the 2 that ask do not tell"):
        paged_rows(case.page_indptr, case.page_indices, case.lengths, asking)
    with pytest.raises(ValueError, match=r"depths of \(2, 2\) do not fit 2 rows of 5 nodes"):
        paged_rows(case.page_indptr, case.page_indices, case.lengths, asking, depths=torch.zeros(2, 2))
    with pytest.raises(ValueError, match=r"\[B or 1, q, n\] with q of at most n"):
        paged_rows(case.page_indptr, case.page_indices, case.lengths, asking.mT, depths=torch.zeros(2, 2))


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
