"""Committed tokens that a draft model has not read: a block of them at a time, as one forward takes it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from specplug.drafters import DraftRequest


@dataclass(frozen=True, slots=True)
class Block:
    """Row b's `counts[b]` next tokens, all on one device: a forward of it can be recorded (graphs/)."""

    tokens: Tensor  # [B, n] int64, the target's; row b's first counts[b] are real, the others any of its tokens
    places: Tensor  # [B] int64: tokens that each row has read before
    counts: Tensor  # [B] int64, at most n; 0: it has read all of its own in an earlier block

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """What it is made of, in order."""
        return self.tokens, self.places, self.counts

    @property
    def positions(self) -> Tensor:
        """[B, n] int64, counted from each row's first token."""
        return self.places[:, None] + torch.arange(self.tokens.shape[1], device=self.places.device)

    def to(self, device: torch.device) -> Block:
        """The same on `device`."""
        return Block(*(tensor.to(device) for tensor in self.tensors))


def next_block(history: Tensor, starts: list[int], lengths: list[int], counts: list[int], width: int) -> Block:
    """The next `counts[b]` tokens of row b, at most `width`, on the device of `history` [B, T] int64.

    Row b's text begins in column `starts[b]`, and `lengths[b]` tokens of it have been read. Nothing behind it is read: a padding
    token may be none of the vocabulary.
    """
    first, places, real = torch.tensor([starts, lengths, counts], device=history.device)
    offset = torch.minimum(torch.arange(width, device=history.device), real[:, None] - 1)
    return Block(history.gather(1, (first + places)[:, None] + offset), places, real)


def most_unread(request: DraftRequest) -> int:
    """Tokens that a row has to read if its last round drafted `request`, too: the newest, and what of the accepted is not kept.

    A tree that is verified as it was drafted keeps what the draft has forwarded, which is all but its last level.
    """
    return request.shape.depth + 1 if request.grown or request.part else 2
