"""A text that turns: predictable at first, random from its half on; dictated to whatever model generates.

No prompt makes a model write like this at a wanted place, so a logits processor leaves one token possible at every place. All
set-ups pay for it alike, and all drafters see a text that repeats itself and then does not.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LogitsProcessor

PASSAGE = 12  # tokens that the predictable half repeats


class Dictation(LogitsProcessor):
    """Only `text` [n] int64 can be written behind a prompt of `start` columns; what lies beyond it is left alone."""

    def __init__(self, text: Tensor, start: int) -> None:
        self._text, self._start = text, start

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        place = input_ids.shape[1] - self._start
        if place >= len(self._text):
            return scores
        only = torch.full_like(scores, -torch.inf)
        only[:, self._text[place]] = 0.0
        return only


def turning_text(length: int, vocab_size: int, seed: int) -> Tensor:
    """`length` tokens: a passage over and over again, then uniform noise. [length] int64."""
    generator = torch.Generator().manual_seed(seed)
    passage = torch.randint(vocab_size, (PASSAGE,), generator=generator)
    first = length // 2
    repeated = passage.repeat(-(-first // PASSAGE))[:first]
    return torch.cat([repeated, torch.randint(vocab_size, (length - first,), generator=generator)])
