"""Moves of KV: new columns written, accepted ones committed, in a cache of rows and in a paged one."""

from __future__ import annotations

import torch
from torch import Tensor

from specplug_kernels.bench.case import Case
from specplug_kernels.bench.shapes import Shape
from specplug_kernels.bench.timing import Call
from specplug_kernels.bench.verify_cases import triton_absent
from specplug_kernels.bench.work import move_work
from specplug_kernels.kv_move_torch import commit_kv, commit_paged_kv, write_kv

ROOM = 256
"""Slots a row, besides those of its tree: so many that no two rows share a memory page."""


def write_case(shape: Shape, device: torch.device) -> Case:
    """Keys and values of a layer's nodes, each row at its own columns."""
    model = shape.model
    size = (shape.batch, model.kv_heads, shape.nodes + ROOM, model.head_dim)
    buffers = [torch.randn(size, device=device).to(shape.dtype) for _ in range(2)]
    size = (shape.batch, shape.nodes, model.kv_heads, model.head_dim)
    news = [torch.randn(size, device=device).to(shape.dtype).transpose(1, 2) for _ in range(2)]
    slots = torch.arange(shape.nodes, device=device) + torch.arange(shape.batch, device=device)[:, None] % ROOM

    def write() -> None:
        for buffer, new in zip(buffers, news, strict=True):
            write_kv(buffer, new, slots)

    lines = 2 * shape.batch * shape.nodes
    label = f"B{shape.batch} n{shape.nodes} Hkv{model.kv_heads} D{model.head_dim} {shape.short_dtype}"
    return Case("write", label, move_work(lines, _line_bytes(shape), slots.numel()), {"torch": write})


def commit_case(shape: Shape, device: torch.device) -> Case:
    """All layers of a cache of rows: every node of a tree but one moves down by a column."""
    model = shape.model
    size = (model.layers, shape.batch, model.kv_heads, shape.nodes + ROOM, model.head_dim)
    storages = [torch.randn(size, device=device).to(shape.dtype) for _ in range(2)]
    source = _moves(shape, device) + ROOM
    return _commit_case("commit", shape, source, {"torch": lambda: commit_kv(storages, source, source - 1)})


def paged_commit_case(shape: Shape, device: torch.device) -> Case:
    """The same in pools of pages, a pool a layer for keys and one for values."""
    model = shape.model
    slots = shape.batch * (shape.nodes + ROOM)
    size = (2 * model.layers, slots, model.kv_heads, model.head_dim)
    pools = list(torch.randn(size, device=device).to(shape.dtype).unbind(0))
    first = torch.arange(shape.batch, device=device)[:, None] * (shape.nodes + ROOM)
    source = _moves(shape, device) + first + ROOM
    target = source - 1
    calls: dict[str, Call] = {"torch": lambda: commit_paged_kv(pools, source, target)}
    absent = triton_absent(device)
    if not absent:
        calls["triton"] = _commit_triton(pools, source, target)
    return _commit_case("paged-commit", shape, source, calls, dict(absent))


def _commit_triton(pools: list[Tensor], source: Tensor, target: Tensor) -> Call:
    from specplug_kernels.commit_kv_triton import commit_paged_kv_triton, pool_table  # noqa: PLC0415  (optional)

    table = pool_table(pools)
    return lambda: commit_paged_kv_triton(table, source, target)


def _moves(shape: Shape, device: torch.device) -> Tensor:
    """``[B, m]``: m = n - 1 columns of a row that move, and one for a tree that is a root alone."""
    return torch.arange(max(1, shape.nodes - 1), device=device).repeat(shape.batch, 1)


def _commit_case(
    operation: str, shape: Shape, source: Tensor, calls: dict[str, Call], absent: dict[str, str] | None = None
) -> Case:
    model = shape.model
    lines = 2 * model.layers * source.numel()
    label = (
        f"B{shape.batch} m{source.shape[1]} L{model.layers} Hkv{model.kv_heads} D{model.head_dim} {shape.short_dtype}"
    )
    work = move_work(lines, _line_bytes(shape), 2 * source.numel())
    return Case(operation, label, work, calls, absent or {})


def _line_bytes(shape: Shape) -> int:
    """Bytes of one token's keys, all KV heads of a layer."""
    return shape.model.kv_heads * shape.model.head_dim * shape.dtype.itemsize
