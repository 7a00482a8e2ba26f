"""Committing in paged pools by Triton against a loop over slots.

The interpreter runs a program's statements one after another, so a missing barrier between reading and writing cannot show
here; reading and writing line by line would.
"""

from __future__ import annotations

import no_readback
import pool_tools
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton", reason="needs the triton package (specplug[triton])")

from specplug_kernels import commit_paged_kv_triton, pool_table


@settings(max_examples=30)
@given(data=st.data())
def test_moves_are_those_of_a_loop(device: torch.device, data: st.DataObject) -> None:
    pools, source, target = pool_tools.draw_moves(data)
    expected = pool_tools.moved(pools, source, target)
    there = pools if device.type == "cpu" else [pool.to(device) for pool in pools]
    table = pool_table(there)
    commit_paged_kv_triton(table, source.to(device, torch.int32), target.to(device))
    pool_tools.check([pool.cpu() for pool in there], expected)


@pytest.mark.parametrize("moves", [2, 129])
def test_overlapping_moves_read_before_they_write(device: torch.device, moves: int) -> None:
    """Two rows, one shifted down by a slot and one up, in lines that take several programs."""
    pool = torch.randn(2 * moves + 2, 3, 100, device=device)
    there = torch.arange(moves, device=device)
    source, target = torch.stack([there + 1, there + moves + 1]), torch.stack([there, there + moves + 2])
    expected = pool_tools.moved([pool.cpu()], source.cpu(), target.cpu())
    commit_paged_kv_triton(pool_table([pool]), source, target)
    pool_tools.check([pool.cpu()], expected)


def test_all_layers_of_a_stacked_pool(device: torch.device) -> None:
    stacked = torch.randn(6, 5, 4, 2, 8, device=device).bfloat16()
    source, target = torch.tensor([[9, 3], [19, 7]], device=device), torch.tensor([[8, 3], [18, 6]], device=device)
    expected = pool_tools.moved([layer.cpu() for layer in stacked], source.cpu(), target.cpu())
    table = pool_table(stacked.unbind(0))
    assert len(table.groups) == 1
    with no_readback.NoReadback():
        commit_paged_kv_triton(table, source, target)
    pool_tools.check([layer.cpu() for layer in stacked], expected)


def test_nothing_to_move(device: torch.device) -> None:
    pool = torch.randn(6, 2, 4, device=device)
    before, nowhere = pool.clone(), torch.zeros(2, 0, dtype=torch.int64, device=device)
    commit_paged_kv_triton(pool_table([pool]), nowhere, nowhere)
    assert torch.equal(pool, before)
