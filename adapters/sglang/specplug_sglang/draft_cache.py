"""Which slots hold the draft's KV of the text that stands there in the target's pool.

The draft's pool is indexed by the target's slots. What the target has read alone, a prompt while the draft is not in use or the
tokens of rounds without it, the draft's pool has not; the radix cache may hand such a prefix on to another request.
"""

from __future__ import annotations

import torch
from torch import Tensor


class DraftCache:
    """A flag for every slot of the token pool. Outlives requests, as the radix cache does."""

    def __init__(self, slots: int, device: torch.device) -> None:
        self._unread = torch.zeros(slots, dtype=torch.bool, device=device)

    def read(self, slots: Tensor) -> None:
        """The draft's KV stands in `slots`."""
        self._unread[slots] = False

    def leave(self, slots: Tensor, unread: Tensor | bool = True) -> None:
        """The target has written `slots`, and the draft only those that are not `unread` [as slots]."""
        self._unread[slots] = unread

    def known(self, slots: Tensor, lengths: Tensor) -> Tensor:
        """Of the first `lengths` [B] of each row's `slots` [B, n], how many the draft has read without a gap. [B] int64.

        On the device: nobody waits for it here.
        """
        if not slots.shape[1]:
            return torch.zeros_like(lengths)
        gap = self._unread[slots]
        first = torch.where(gap.any(1), gap.int().argmax(1), slots.shape[1])
        return torch.minimum(first, lengths)
