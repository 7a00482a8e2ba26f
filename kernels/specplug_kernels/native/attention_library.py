"""The compiled tree attention: tried against its definition, and called."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from specplug_kernels.native.library import DTYPES, Known, Library, numbers
from specplug_kernels.reference import tree_attention_reference

TRIED = ((2, 7), (1, 13), (1, 11), (2, 9), (1, 25), (1, 7), (3, 8))
"""Groups and nodes whose packed rows go in tiles of 8, 4, 2 and 1, and of 16 where there are such: whole ones and padded ones."""
DEEP = 32
"""A block's numbers of a head."""
DIMS = ((24, 40), (32, 64))
"""Of keys and values in a trial: any, and those that are multiplied in blocks where the processor does."""
COLUMNS, TAIL = 700, 40
"""Of a trial: blocks that threads share, and a part that masks may hide."""


class AttentionLibrary(Library):
    """Attention of a few queries over a KV cache. ``blocks``: whether it multiplies blocks of bf16 (AMX), of heads that `in_blocks` names."""

    source = "tree_attention"
    call = struct.Struct("@5P 8q 3q 3q 3q 3q 2q d")

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.blocks = bool(ctypes.CDLL(str(path)).specplug_multiplies_blocks())

    def in_blocks(self, dtype: torch.dtype, *dims: int) -> bool:
        """Whether keys and values of so many numbers are multiplied in blocks."""
        return self.blocks and dtype is torch.bfloat16 and not any(dim % DEEP for dim in dims)

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, prefix: int, bias: Tensor | None, scale: float
    ) -> Tensor:
        """As ``dispatch.tree_attention``, of tensors that this library serves: nothing is looked at again here."""
        if query.stride(3) != 1:
            query = query.contiguous()
        batch, heads, nodes, dim = query.shape
        kv_heads, columns, value_dim = key.shape[1], key.shape[2], value.shape[3]
        out = query.new_empty(batch, nodes, heads, value_dim)
        status = self.function(
            self.call.pack(
                query.data_ptr(),
                key.data_ptr(),
                value.data_ptr(),
                0 if bias is None else bias.data_ptr(),
                out.data_ptr(),
                batch,
                kv_heads,
                heads // kv_heads,
                nodes,
                columns,
                prefix,
                dim,
                value_dim,
                *query.stride()[:3],
                *key.stride()[:3],
                *value.stride()[:3],
                *_bias_strides(bias),
                DTYPES[query.dtype],
                torch.get_num_threads() if self.threads else 1,
                scale,
            )
        )
        if status:
            raise MemoryError(f"no memory for attention of {heads * nodes} queries")
        return out

    def trials(self, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
        for (groups, nodes), (dim, value_dim) in product(TRIED, DIMS):
            query = numbers(2, 2 * groups, nodes, dim).to(dtype)
            key, value = numbers(2, 2, COLUMNS, dim).to(dtype), numbers(2, 2, COLUMNS, value_dim).to(dtype)
            for prefix in (COLUMNS - TAIL, 0):
                bias = _hiding(nodes, COLUMNS - prefix, dtype)
                wanted = tree_attention_reference(query, key, value, prefix=prefix, bias=bias, scale=0.5)
                yield self(query, key, value, prefix, bias, 0.5), wanted.float()


def _hiding(nodes: int, columns: int, dtype: torch.dtype) -> Tensor:
    """A bias that hides half of the columns, and all from one query."""
    hidden = numbers(2, 1, nodes, columns) > 0
    hidden[0, 0, 1] = True
    return torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, float("-inf"))


def _bias_strides(bias: Tensor | None) -> tuple[int, int, int]:
    """Of batch, node and column; a bias of one row serves the whole batch."""
    if bias is None:
        return 0, 0, 0
    batch, _, node, column = bias.stride()
    return (batch if bias.shape[0] > 1 else 0), node, column


attention_library = Known(AttentionLibrary)
"""Called: the library, built and loaded by the first call of the process; or why there is none."""
