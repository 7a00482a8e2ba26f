"""A needle in a haystack: a passage of another text early in a long one, to be written again at its end.

What follows is dictated, so that every draft is asked for the same tokens: one that has read the passage knows them, as far as
the model can copy at all; one that has not can but guess. Reading everything is the ceiling.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

CUE = 12  # tokens of the passage that stand at the text's end
LENGTH = 48  # tokens of the passage


@dataclass(frozen=True, slots=True)
class Haystack:
    """`ids` [1, L]: the text with its cue; `answer` [n]: the passage's tokens behind the cue."""

    ids: Tensor
    answer: Tensor


def haystack(text: Tensor, depth: float, passage: Tensor) -> Haystack:
    """`text` [1, L] with `passage` [LENGTH] at `depth` (0 first, 1 last), and its cue at the end: as long as before."""
    room = text.shape[1] - LENGTH - CUE
    place = int(depth * room)
    parts = [text[0, :place], passage, text[0, place:room], passage[:CUE]]
    return Haystack(torch.cat(parts)[None], passage[CUE:])
