"""Committing in paged pools against a loop over slots, in torch. Triton's: `interpreted/`."""

from __future__ import annotations

import pool_tools
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specplug_kernels import commit_paged_kv


@settings(max_examples=40)
@given(data=st.data())
def test_moves_are_those_of_a_loop(data: st.DataObject) -> None:
    pools, source, target = pool_tools.draw_moves(data)
    expected = pool_tools.moved(pools, source, target)
    commit_paged_kv(pools, source, target)
    pool_tools.check(pools, expected)


def test_overlapping_moves_read_before_they_write() -> None:
    pool = torch.arange(10.0)[:, None, None].repeat(1, 2, 4)
    commit_paged_kv([pool], torch.tensor([[4, 5, 6], [9, 8, 7]]), torch.tensor([[3, 4, 5], [8, 9, 7]]))
    assert pool[:, 0, 0].tolist() == [0, 1, 2, 4, 5, 6, 6, 7, 9, 8]


def test_nothing_to_move() -> None:
    pool = torch.randn(6, 2, 4)
    before, nowhere = pool.clone(), torch.zeros(2, 0, dtype=torch.int64)
    commit_paged_kv([pool], nowhere, nowhere)
    assert torch.equal(pool, before)


def test_pools_whose_slots_cannot_be_counted_are_refused() -> None:
    slots = torch.tensor([[1]])
    with pytest.raises(ValueError, match="heads and dimensions of a pool must be contiguous"):
        commit_paged_kv([torch.zeros(6, 4, 2).transpose(1, 2)], slots, slots)
    with pytest.raises(ValueError, match="pages of a pool must follow one another"):
        commit_paged_kv([torch.zeros(6, 8, 2, 4)[:, :4]], slots, slots)
    with pytest.raises(ValueError, match=r"\[slots, Hkv, D\] or \[pages, page, Hkv, D\]"):
        commit_paged_kv([torch.zeros(6, 8)], slots, slots)
