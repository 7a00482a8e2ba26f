"""Inputs for the compiled attention and an answer in fp64 to hold against it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from library_tools import skip_without
from torch import Tensor

from specplug_kernels import tree_attention, tree_attention_reference
from specplug_kernels.native.attention_library import attention_library

HIDDEN = float("-inf")
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 2**-8, torch.float16: 2**-11}
"""Half a unit in the last place of an output; of fp32, what sums of some hundred products may be off by."""
ABSOLUTE = 1e-5


def skip_without_library(dtype: torch.dtype = torch.float32) -> None:
    """Skip, and say why, where nothing could be compiled."""
    skip_without(attention_library, dtype)


@dataclass
class Case:
    """Arguments of ``tree_attention``."""

    query: Tensor
    key: Tensor
    value: Tensor
    prefix: int
    bias: Tensor | None
    scale: float = 0.3

    def run(self, kernel: str = "native") -> Tensor:
        return tree_attention(
            self.query, self.key, self.value, prefix=self.prefix, bias=self.bias, scale=self.scale, kernel=kernel
        )

    def exact(self) -> Tensor:
        """In fp64, from the very numbers that were given."""
        bias = None if self.bias is None else self.bias.double()
        given = (tensor.double() for tensor in (self.query, self.key, self.value))
        return tree_attention_reference(*given, prefix=self.prefix, bias=bias, scale=self.scale)

    def check(self) -> None:
        before = [tensor.clone() for tensor in self._tensors()]
        ours = self.run()
        batch, heads, nodes, _ = self.query.shape
        assert ours.shape == (batch, nodes, heads, self.value.shape[3])
        assert ours.dtype == self.query.dtype and ours.is_contiguous()
        rounding = ROUNDING[self.query.dtype]
        torch.testing.assert_close(ours.double(), self.exact(), atol=ABSOLUTE, rtol=rounding)
        assert all(torch.equal(old, new) for old, new in zip(before, self._tensors(), strict=True))

    def _tensors(self) -> list[Tensor]:
        return [tensor for tensor in (self.query, self.key, self.value, self.bias) if tensor is not None]


def make_case(
    *,
    batch: int = 1,
    kv_heads: int = 1,
    groups: int = 1,
    nodes: int = 1,
    columns: int = 50,
    prefix: int | None = None,
    dim: int = 16,
    value_dim: int | None = None,
    bias_rows: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> Case:
    """Random, with views into larger buffers, and NaN in what is no part of the views. ``prefix=None``: everything is visible."""
    query = torch.randn(batch, nodes, kv_heads * groups, dim).to(dtype).transpose(1, 2)
    key, value = (buffer(batch, kv_heads, columns, size, dtype) for size in (dim, value_dim or dim))
    if prefix is None:
        return Case(query, key, value, columns, None)
    return Case(query, key, value, prefix, random_bias(bias_rows or batch, nodes, columns - prefix, dtype))


def buffer(batch: int, heads: int, columns: int, dim: int, dtype: torch.dtype) -> Tensor:
    """A view ``[B, H, T, D]`` with room behind each head's columns, where NaN stands."""
    whole = torch.full((batch, heads, columns + 5, dim), float("nan"), dtype=dtype)
    view = whole[:, :, :columns]
    view.copy_(torch.randn(view.shape))
    return view


def random_bias(batch: int, nodes: int, tail: int, dtype: torch.dtype) -> Tensor:
    """Half hidden, a fifth of the rest not zero; some queries may see nothing."""
    bias = torch.zeros(batch, 1, nodes, tail)
    bias[torch.rand(bias.shape) < 0.2] = 0.75
    bias[torch.rand(bias.shape) < 0.5] = HIDDEN
    return bias.to(dtype)
