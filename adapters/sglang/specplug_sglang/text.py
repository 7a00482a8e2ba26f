"""The committed tokens of every running request, on the device, one row for each of SGLang's request slots."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class TextStore:
    """`ids` [request slots, positions] int64. A request's row is written whole when its prompt is run, then round by round."""

    def __init__(self, like: Tensor, vocab_size: int) -> None:
        """`like`: SGLang's `req_to_token` [request slots, positions]."""
        self.ids = torch.zeros(like.shape, dtype=torch.int64, device=like.device)
        self._last_id = vocab_size - 1

    def begin(self, row: int, tokens: Sequence[int]) -> None:
        """The prompt of the request in `row`, as far as it has been run. Ids that stand for images become the last id."""
        written = torch.tensor(tokens, dtype=torch.int64).clamp_(0, self._last_id)
        self.ids[row, : len(tokens)] = written.to(self.ids.device, non_blocking=True)

    def append(self, rows: Tensor, lengths: Tensor, tokens: Tensor) -> None:
        """`tokens` [B, P] at the positions from `lengths` [B] on. What lies behind a row's accepted ones is overwritten later."""
        columns = lengths[:, None] + torch.arange(tokens.shape[1], device=tokens.device)
        self.ids[rows[:, None], columns.clamp(max=self.ids.shape[1] - 1)] = tokens.to(self.ids.dtype)

    def rows(self, rows: Tensor, width: int) -> Tensor:
        """The first `width` positions of `rows` [B]: [B, width] int64."""
        return self.ids[rows, :width]
