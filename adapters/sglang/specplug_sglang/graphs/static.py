"""The tensors that captured draft forwards read. Their addresses stay; every forward's input is copied into them."""

from __future__ import annotations

import torch
from torch import Tensor

from specplug_sglang.view import NodeView


class StaticInputs:
    """Room for `size` tokens, each a decode row of its own that reads at most `columns` slots.

    `tokens`, `positions`, `write`, `rows`, `lengths` [size] int64: the token, its position, the slot its KV goes to, its
    request's place in SGLang's table and how many tokens that has committed. `indptr` [size + 1] int32 and `indices`
    [size * columns]: the slots that each token reads. A smaller forward uses the first of each.

    Padding reads and writes slot 0 alone, which SGLang keeps for what nobody needs: attention over nothing is NaN.
    """

    def __init__(self, size: int, columns: int, device: torch.device | str, index_dtype: torch.dtype) -> None:
        """`index_dtype`: of `indices`, as the attention backend's own graphs have it."""
        self.size, self.columns = size, columns
        self.tokens, self.positions, self.write, self.rows = (
            torch.zeros(size, dtype=torch.int64, device=device) for _ in range(4)
        )
        self.lengths = torch.ones(size, dtype=torch.int64, device=device)
        # a capture runs before anything is loaded: all padding
        self.indptr = torch.arange(size + 1, dtype=torch.int32, device=device)
        self.indices = torch.zeros(size * columns, dtype=index_dtype, device=device)
        self._steps = torch.arange(1, size + 1, dtype=torch.int32, device=device)

    def counts(self, size: int) -> Tensor:
        """How many slots each of the first `size` tokens reads: [size] int32."""
        return self.indptr[1 : size + 1] - self.indptr[:size]

    def load(
        self, size: int, tokens: Tensor, view: NodeView, write: Tensor, positions: Tensor, rows: Tensor, lengths: Tensor
    ) -> None:
        """Copy a forward of B rows with q nodes each, and pad it to `size` tokens.

        `tokens`, `write` [B, q], `positions` [B q], `rows`, `lengths` [B]; `view` has at most `columns` columns.
        """
        count = tokens.numel()
        each = tokens.shape[1]
        for buffer, value, blank in (
            (self.tokens, tokens.flatten(), 0),
            (self.positions, positions, 0),
            (self.write, write.flatten(), 0),
            (self.rows, rows.repeat_interleave(each), 0),
            (self.lengths, lengths.repeat_interleave(each), 1),
        ):
            buffer[:count].copy_(value)
            buffer[count:size].fill_(blank)
        self._load_lists(size, count, view)

    def _load_lists(self, size: int, count: int, view: NodeView) -> None:
        indptr, indices = view.flat()
        pad, room = size - count, count * view.slots.shape[1]
        self.indptr[: count + 1].copy_(indptr)
        self.indptr[count + 1 : size + 1] = indptr[-1] + self._steps[:pad]
        # behind the last list `indices` is zero up to `room`; its one entry beyond is no slot of anybody's
        self.indices[:room].copy_(indices[:room])
        self.indices[room : room + pad].zero_()
