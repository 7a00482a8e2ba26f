"""Random pools of a paged cache and moves in them, and what a loop makes of them."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int8)


def random_pool(slots: int, page: int, heads: int, dim: int, dtype: torch.dtype, form: str) -> Tensor:
    """[slots, heads, dim], [pages, page, heads, dim], or every other slot of a larger pool."""
    if form == "pages":
        return (torch.randn(slots // page, page, heads, dim) * 50).to(dtype)
    if form == "view":
        return (torch.randn(slots, 2 * heads, dim) * 50).to(dtype)[:, heads:]
    return (torch.randn(slots, heads, dim) * 50).to(dtype)


def draw_moves(data: st.DataObject) -> tuple[list[Tensor], Tensor, Tensor]:
    """Pools, `source` and `target` [B, m]: rows have slots of their own, moves overlap, some entries stay where they are."""
    torch.manual_seed(data.draw(st.integers(0, 2**16)))
    rows, moves, page = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 9)), data.draw(st.sampled_from((1, 4)))
    each = 2 * moves + 3
    slots = -(-rows * each // page) * page
    pools = [
        random_pool(slots, page, data.draw(st.integers(1, 3)), data.draw(st.sampled_from((1, 3, 8, 40))), dtype, form)
        for dtype, form in data.draw(
            st.lists(
                st.tuples(st.sampled_from(DTYPES), st.sampled_from(("slots", "pages", "view"))), min_size=1, max_size=4
            )
        )
    ]
    own = torch.randperm(slots)[: rows * each].view(rows, each)
    source = torch.stack([row[torch.randperm(each)[:moves]] for row in own])
    target = torch.stack([row[torch.randperm(each)[:moves]] for row in own])
    for row in range(rows):  # an entry that stays must name a slot that nobody writes
        for move in range(moves):
            free = source[row, move] not in target[row]
            if source[row, move] == target[row, move] or (free and data.draw(st.booleans())):
                target[row, move] = source[row, move]
    return pools, source, target


def moved(pools: list[Tensor], source: Tensor, target: Tensor) -> list[Tensor]:
    """Copies of the pools, moved slot by slot from what they were before."""
    result = [pool.clone() for pool in pools]
    for before, after in zip(pools, result, strict=True):
        old, new = (pool if pool.ndim == 3 else pool.flatten(0, 1) for pool in (before, after))
        for read, written in zip(source.flatten().tolist(), target.flatten().tolist(), strict=True):
            new[written] = old[read]
    return result


def check(pools: list[Tensor], expected: list[Tensor]) -> None:
    for pool, wanted in zip(pools, expected, strict=True):
        assert torch.equal(pool, wanted)
