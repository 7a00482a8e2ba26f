"""The operations by name: how a case is built, on what of a shape it depends, and what memory it takes."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch

from specplug_kernels.bench.attention_cases import attention_case, paged_attention_case
from specplug_kernels.bench.case import Case
from specplug_kernels.bench.layer_cases import linear_case, norm_case
from specplug_kernels.bench.move_cases import ROOM, commit_case, paged_commit_case, write_case
from specplug_kernels.bench.shapes import Shape
from specplug_kernels.bench.verify_cases import accepting_case, greedy_case, refusing_case


@dataclass(frozen=True, slots=True)
class Operation:
    """``depends_on``: shapes with the same are measured once. ``footprint``: bytes of a case's largest tensors."""

    build: Callable[[Shape, torch.device], Case]
    depends_on: Callable[[Shape], Hashable]
    footprint: Callable[[Shape], int]


def _cache_bytes(shape: Shape) -> int:
    model = shape.model
    return 2 * shape.batch * shape.columns * model.kv_heads * model.head_dim * shape.dtype.itemsize


def _law_bytes(shape: Shape) -> int:
    return 2 * shape.batch * shape.nodes * shape.model.vocab * 4


def _pool_bytes(shape: Shape) -> int:
    model = shape.model
    slots = shape.batch * (shape.nodes + ROOM)
    return 2 * model.layers * slots * model.kv_heads * model.head_dim * shape.dtype.itemsize


def _whole(shape: Shape) -> Hashable:
    return shape


def _tree(shape: Shape) -> Hashable:
    return shape.batch, shape.nodes


def _laws(shape: Shape) -> Hashable:
    return shape.batch, shape.nodes, shape.model.vocab


def _layer(shape: Shape) -> Hashable:
    return shape.batch, shape.nodes, shape.model.kv_heads, shape.model.head_dim, shape.dtype


def _layers(shape: Shape) -> Hashable:
    return _layer(shape), shape.model.layers


def _rows(shape: Shape) -> Hashable:
    return shape.batch * shape.nodes, shape.width, shape.dtype


def _weight_bytes(shape: Shape) -> int:
    return shape.width**2 * shape.dtype.itemsize


OPERATIONS = {
    "attention": Operation(attention_case, _whole, _cache_bytes),
    "paged-attention": Operation(paged_attention_case, _whole, _cache_bytes),
    "linear": Operation(linear_case, _rows, _weight_bytes),
    "norm": Operation(norm_case, _rows, lambda shape: 0),
    "verify-greedy": Operation(greedy_case, _tree, lambda shape: 0),
    "verify-sampled-accepted": Operation(accepting_case, _laws, _law_bytes),
    "verify-sampled-refused": Operation(refusing_case, _laws, _law_bytes),
    "commit": Operation(commit_case, _layers, _pool_bytes),
    "paged-commit": Operation(paged_commit_case, _layers, _pool_bytes),
    "write": Operation(write_case, _layer, lambda shape: 0),
}
