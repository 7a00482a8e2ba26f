"""What comes out of the target's last norm, for drafters that start from it (MLP speculators)."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel


class HiddenStates:
    """`newest` [B, D]: at the token from which each row's root was chosen."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._decoder = model.get_decoder()
        self._seen: Tensor | None = None
        self.newest: Tensor

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Keep what this thread's forwards within give, the last of them in the end."""
        thread = threading.get_ident()

        def keep(module: Any, args: Any, output: Any) -> None:
            if threading.get_ident() == thread:
                self._seen = output[0] if isinstance(output, tuple) else output.last_hidden_state

        hook = self._decoder.register_forward_hook(keep)
        try:
            yield
        finally:
            hook.remove()

    def settle_prompt(self, device: torch.device) -> None:
        """The last column's count: prompts end there."""
        assert self._seen is not None
        self.newest, self._seen = self._seen[:, -1].to(device), None

    def commit(self, path: Tensor, counts: Sequence[int]) -> None:
        """Of the nodes just seen, `path` [B, m] are committed, the first `counts[b]` of row b: the last one chose the root."""
        assert self._seen is not None
        last = torch.tensor(counts, device=path.device).sub(1).clamp(min=0)[:, None]
        node = path.gather(1, last).to(self._seen.device)
        self.newest = self._seen.gather(1, node[..., None].expand(-1, 1, self._seen.shape[2]))[:, 0].to(
            self.newest.device
        )
        self._seen = None

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Only the batch rows `rows` stay."""
        self.newest = self.newest[torch.tensor(rows, device=self.newest.device)]
