"""The Triton kernel of paged tree attention against a loop in fp64."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import no_readback
import paged_tools
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton", reason="needs the triton package (specplug[triton])")

from specplug_kernels import PagedRows, paged_tree_attention
from specplug_kernels.paged_tiles import choose_splits, tile_sizes
from specplug_kernels.paged_tree_attention_triton import paged_tree_attention_triton


def attend(
    case: paged_tools.Case, device: torch.device, num_splits: int | None = None, max_length: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The kernel's result, brought back to the CPU."""
    there = moved(case, device).arguments(max_length=max_length)
    out, lse = paged_tree_attention_triton(*there, num_splits=num_splits)
    return out.cpu(), lse.cpu()


def moved(case: paged_tools.Case, device: torch.device) -> paged_tools.Case:
    """The case on the device, strides and all."""
    there = {name: getattr(case, name).to(device) for name in ("page_indptr", "page_indices", "lengths", "ancestors")}
    there |= {name: _moved(getattr(case, name), device) for name in ("query", "key_pages", "value_pages")}
    sinks = None if case.rule.sinks is None else case.rule.sinks.to(device)
    return replace(case, **there, rule=replace(case.rule, sinks=sinks))


def _moved(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """On the device, its strides kept."""
    if device.type == "cpu":
        return tensor
    whole = torch.as_strided(tensor, (tensor.untyped_storage().size() // tensor.element_size(),), (1,), 0).to(device)
    return torch.as_strided(whole, tensor.shape, tensor.stride(), tensor.storage_offset())


HALF = (torch.float16, torch.float16, torch.bfloat16)


@settings(max_examples=16)
@given(case=paged_tools.cases(dims=(64, 80), longest=150, dtypes=(torch.float32, *HALF)), splits=st.integers(1, 5))
def test_ragged_rows_with_every_option(device: torch.device, case: paged_tools.Case, splits: int) -> None:
    paged_tools.check(case, attend(case, device, splits))


@pytest.mark.parametrize("groups", [1, 2, 3, 4, 5, 6, 7, 8])
def test_head_ratios(device: torch.device, groups: int) -> None:
    case = paged_tools.make_case([40, 7], 5, kv_heads=1, groups=groups)
    paged_tools.check(case, attend(case, device, 2))


@pytest.mark.parametrize(
    ("dim", "value_dim"), [(64, 64), (80, 80), (96, 96), (128, 128), (192, 128), (256, 256), (16, 8)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_head_dimensions(device: torch.device, dim: int, value_dim: int, dtype: torch.dtype) -> None:
    case = paged_tools.make_case([37], 4, kv_heads=1, dim=dim, value_dim=value_dim, dtype=dtype, strided=True)
    paged_tools.check(case, attend(case, device, 1))


@pytest.mark.parametrize("page", [1, 16, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_pages_and_dtypes(device: torch.device, page: int, dtype: torch.dtype) -> None:
    case = paged_tools.make_case([130, 64, 0], 6, page=page, dtype=dtype)
    paged_tools.check(case, attend(case, device, 3))


@pytest.mark.parametrize("nodes", [1, 31, 33, 129])
def test_trees_of_every_size(device: torch.device, nodes: int) -> None:
    case = paged_tools.make_case([21, 70], nodes, kv_heads=1, groups=2)
    paged_tools.check(case, attend(case, device, 2))


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("nodes", [1, 33])
def test_a_last_block_of_one_column(device: torch.device, nodes: int, splits: int) -> None:
    """The tree's last node stands alone behind whole blocks of 32."""
    case = paged_tools.make_case([128 - nodes + 1, 65 - nodes, 224 - nodes + 1], nodes, kv_heads=1, groups=2)
    assert tile_sizes(2 * nodes, 64, 4)[1] == 32
    paged_tools.check(case, attend(case, device, splits))


@pytest.mark.parametrize("window", [None, 2, 40])
@pytest.mark.parametrize("page", [1, 16])
def test_a_level_at_a_time_gives_the_rows_of_the_whole_tree(
    device: torch.device, page: int, window: int | None
) -> None:
    """As a draft grows a tree: each level asks before anything stands behind it; the third has more than a tile."""
    widths = (1, 3, 30, 4)
    trees = torch.stack([paged_tools.levelled_ancestors(widths) for _ in range(2)])
    case = paged_tools.make_case([70, 0], sum(widths), ancestors=trees, kv_heads=1, groups=2, page=page, window=window)
    whole, whole_lse = attend(case, device, 2)
    paged_tools.check(case, (whole, whole_lse))
    for first, stop in pairwise((0, 1, 4, 34, 38)):
        out, lse = attend(case.level(first, stop), device, 2)
        torch.testing.assert_close(out, whole[:, first:stop], atol=4e-6, rtol=0)
        torch.testing.assert_close(lse, whole_lse[:, first:stop], atol=4e-6, rtol=0)


@pytest.mark.parametrize("splits", [1, 2])
@pytest.mark.parametrize("window", [3, 37, 70])
@pytest.mark.parametrize("upwards", [False, True])
def test_tiles_that_reach_back_differently(device: torch.device, window: int, splits: int, upwards: bool) -> None:
    """A chain: the queries of one tile are deeper than another's, so their windows begin later. Some nodes do not ask.

    `upwards`: the root comes last, so the deepest nodes see the first slots of the tree.
    """
    chain = torch.ones(1, 60, 60).tril().bool()
    chain = chain.mT if upwards else chain
    case = paged_tools.make_case([70, 33], 60, queries=50, ancestors=chain, kv_heads=1, groups=2, window=window)
    assert tile_sizes(100, 64, 4)[0] < 100
    paged_tools.check(case, attend(case, device, splits))


@pytest.mark.parametrize("splits", [1, 2, 7, 20])
def test_splits_also_more_than_there_are_blocks(device: torch.device, splits: int) -> None:
    torch.manual_seed(1)
    case = paged_tools.make_case([170, 3], 3, kv_heads=1, groups=2, sinks=torch.tensor([0.5, 3.0]))
    result = attend(case, device, splits)
    paged_tools.check(case, result)
    assert all(torch.equal(a, b) for a, b in zip(result, attend(case, device, splits), strict=True))


@pytest.mark.parametrize("window", [1, 2, 3, 33, 64, 65, 128])
@pytest.mark.parametrize("splits", [1, 3])
def test_windows_that_end_inside_and_between_blocks(device: torch.device, window: int, splits: int) -> None:
    """Pages that no node sees are poison and not in the page table."""
    case = paged_tools.make_case([128, 97], 6, kv_heads=1, groups=2, page=1, window=window)
    paged_tools.check(case, attend(case, device, splits))


@pytest.mark.parametrize("splits", [1, 2])
@pytest.mark.parametrize("sinks", [False, True])
def test_a_node_that_sees_nothing_gets_zeros(device: torch.device, splits: int, sinks: bool) -> None:
    ancestors = torch.tensor([[[True, False], [False, False]]])
    case = paged_tools.make_case([0, 9], 2, ancestors=ancestors, sinks=torch.randn(6) if sinks else None)
    out, lse = result = attend(case, device, splits)
    assert out[0, 1].eq(0).all()
    if not sinks:
        assert lse[0, 1].eq(-torch.inf).all()
    paged_tools.check(case, result)


def test_nodes_far_deeper_than_there_are_nodes(device: torch.device) -> None:
    """A caller's own depths, under a window: committed tokens behind it are poison in pages that do not exist."""
    case = paged_tools.make_case([200], 2, ancestors=torch.eye(2).bool()[None], page=1, window=60)
    rows = replace(case.rows(), depths=torch.full((1, 2), 40, dtype=torch.int32))
    unseen = case.page_indices[141:181]
    key_pages, value_pages = case.key_pages.clone(), case.value_pages.clone()
    key_pages[unseen.long()], value_pages[unseen.long()] = torch.nan, torch.nan
    case.page_indices[141:181] = paged_tools.NOT_A_PAGE
    given = (case.query, key_pages, value_pages, rows, case.rule)
    wanted, wanted_lse = paged_tree_attention(*given, kernel="torch")
    there = [t.to(device) for t in given[:3]]
    out, lse = paged_tree_attention_triton(*there, _on(rows, device), case.rule)
    torch.testing.assert_close(out.cpu(), wanted, atol=2e-5, rtol=0)
    torch.testing.assert_close(lse.cpu(), wanted_lse, atol=2e-5, rtol=0)


def _on(rows: PagedRows, device: torch.device) -> PagedRows:
    tensors = {
        name: getattr(rows, name).to(device) for name in ("page_indptr", "page_indices", "lengths", "bitmap", "depths")
    }
    return replace(rows, **tensors)


def test_the_window_of_a_node_that_does_not_see_itself(device: torch.device) -> None:
    """Without ancestors its depth counts as -1: it looks one position further back than the root, into another block."""
    ancestors = torch.tensor([[[True, False], [False, False]]])
    case = paged_tools.make_case([35], 2, ancestors=ancestors, window=4)
    paged_tools.check(case, attend(case, device))


@pytest.mark.parametrize("cap", [None, 2.0])
def test_scores_of_any_size(device: torch.device, cap: float | None) -> None:
    """exp of a score must not overflow, nor must a maximum of very negative scores give nothing."""
    case = paged_tools.make_case([40], 3, kv_heads=1, logit_cap=cap)
    rule = replace(case.rule, scale=20.0)
    out, lse = attend(replace(case, rule=rule), device, 2)
    wanted, wanted_lse = paged_tree_attention(case.query.double(), *_doubled(case), case.rows(), rule, kernel="torch")
    torch.testing.assert_close(out.double(), wanted, atol=2e-3, rtol=0)  # scores of 1000 are known to 1e-4
    torch.testing.assert_close(lse.double(), wanted_lse, atol=1e-3, rtol=0)


def _doubled(case: paged_tools.Case) -> tuple[torch.Tensor, torch.Tensor]:
    return case.key_pages.double(), case.value_pages.double()


def test_nothing_is_read_back_and_max_length_is_a_hint(device: torch.device) -> None:
    case = paged_tools.make_case([70, 3], 4, kv_heads=1, groups=2)
    there = moved(case, device)
    arguments = there.arguments()
    plan = paged_tools.planned(there, "triton", device.type)
    assert (plan.name, plan.reason) == ("triton", "asked for by name")
    with no_readback.NoReadback():
        once = paged_tree_attention(*arguments, kernel="triton")
        again = plan(there.query, there.key_pages, there.value_pages, there.rule)
    for out, lse in (once, again):
        paged_tools.check(case, (out.cpu(), lse.cpu()))
    paged_tools.check(case, attend(case, device, max_length=5000))


def test_what_the_kernel_does_not_take_is_named(device: torch.device) -> None:
    case = paged_tools.make_case([9], 3)
    query, keys, values, rows, rule = case.arguments()
    for wrong, message in (
        ((query.double(), keys.double(), values.double()), "not torch.float64; kernel='torch' can"),
        ((query.half(), keys, values), "query, keys and values of one dtype, not torch.float16"),
        ((query, keys.transpose(2, 3).contiguous().transpose(2, 3), values), "last dimension is contiguous"),
    ):
        with pytest.raises(ValueError, match=message):
            paged_tree_attention_triton(*wrong, rows, rule)


def test_splits_are_chosen_by_work_and_processors() -> None:
    assert choose_splits(programs=8, columns=32768, processors=132) == 33  # one row of 8 KV heads: two programs each
    assert choose_splits(programs=8, columns=600, processors=132) == 2  # as many as have 256 columns
    assert choose_splits(programs=256, columns=32768, processors=132) == 2
    assert choose_splits(programs=2000, columns=32768, processors=132) == 1
    assert choose_splits(programs=1, columns=10**6, processors=132) == 64
    assert choose_splits(programs=1, columns=0, processors=1) == 1


def test_tiles_hold_the_packed_rows() -> None:
    assert tile_sizes(1, 128, 2)[0] == 16 and tile_sizes(68, 128, 2)[0] == 128 and tile_sizes(1000, 256, 2)[0] == 64
