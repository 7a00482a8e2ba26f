"""The shapes that are measured: models, batches, contexts and tree sizes, alone or as presets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import torch


@dataclass(frozen=True, slots=True)
class Model:
    """What of a model matters here: heads, layers and vocabulary."""

    heads: int
    kv_heads: int
    head_dim: int
    layers: int
    vocab: int


@dataclass(frozen=True, slots=True)
class Shape:
    """One point: a model's layer, ``batch`` rows of ``context`` committed tokens, and trees of ``nodes`` nodes."""

    model: Model
    batch: int
    context: int
    nodes: int
    dtype: torch.dtype
    page: int

    @property
    def columns(self) -> int:
        """Entries of a row in the cache: the committed tokens and the tree."""
        return self.context + self.nodes

    @property
    def width(self) -> int:
        """Of the hidden states: of all query heads together."""
        return self.model.heads * self.model.head_dim

    @property
    def groups(self) -> int:
        return self.model.heads // self.model.kv_heads

    @property
    def short_dtype(self) -> str:
        return {"float32": "fp32", "float64": "fp64", "bfloat16": "bf16", "float16": "fp16"}[str(self.dtype)[6:]]

    def __str__(self) -> str:
        m = self.model
        return f"B{self.batch} H{m.heads}/{m.kv_heads} D{m.head_dim} S{self.context} n{self.nodes} {self.short_dtype}"


@dataclass(frozen=True, slots=True)
class Preset:
    """Models, (batch, context) pairs and tree sizes that belong together."""

    models: tuple[Model, ...]
    points: tuple[tuple[int, int], ...]
    nodes: tuple[int, ...]

    def shapes(self, dtype: torch.dtype, page: int) -> Iterator[Shape]:
        for model, (batch, context), nodes in product(self.models, self.points, self.nodes):
            yield Shape(model, batch, context, nodes, dtype, page)


BUILT_IN_TARGET = Model(8, 2, 32, layers=8, vocab=3072)
BUILT_IN_DRAFT = Model(4, 2, 32, layers=2, vocab=3072)
LLAMA_8B = Model(32, 8, 128, layers=32, vocab=128_256)

K = 1024
PRESETS = {
    # the pair that ships (adapters/hf/specplug_hf/demo/{target,draft}/config.json)
    "small": Preset((BUILT_IN_TARGET, BUILT_IN_DRAFT), tuple(product((1, 4), (256, 2048, 8192))), (1, 5, 9, 17)),
    # the CPU goal: 1.3 times the reading of the cache, for up to 8 packed rows; 8 nodes beside it
    "cpu": Preset(
        (BUILT_IN_TARGET, Model(8, 8, 64, layers=8, vocab=32_000), LLAMA_8B),
        tuple(product((1, 4), (2 * K, 8 * K, 32 * K))),
        (1, 2, 8),
    ),
    # Llama-3.1-8B in bf16 on one H200: as many rows as the cache of 32 layers leaves room for, by context
    "llama-3.1-8b": Preset(
        (LLAMA_8B,),
        (
            (1, 4 * K), (1, 32 * K), (8, 16 * K), (8, 32 * K), (8, 64 * K), (32, 4 * K), (32, 16 * K), (30, 32 * K),
            (15, 64 * K),
        ),
        (1, 5, 9, 17),
    ),
}  # fmt: skip


def preset_of(
    name: str,
    *,
    models: Sequence[Model] | None,
    batches: Sequence[int] | None,
    contexts: Sequence[int] | None,
    nodes: Sequence[int] | None,
) -> Preset:
    """The preset called ``name`` with what is given in its place; batches and contexts given apart are all combined."""
    preset = PRESETS[name]
    points = preset.points
    if batches is not None or contexts is not None:
        own_batches, own_contexts = (tuple(dict.fromkeys(column)) for column in zip(*points, strict=True))
        points = tuple(product(batches or own_batches, contexts or own_contexts))
    return Preset(tuple(models or preset.models), points, tuple(nodes or preset.nodes))
