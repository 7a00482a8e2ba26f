"""A needle in a haystack: a passage of another text, out of every window, to be written again at the end.

A target may not be able to copy, and much of a passage can be guessed without having read it, so it is read a second time with
other text in the needle's place. Tokens where the target says something else then are those that a draft can only know
from afar; some of them it says right with the needle and wrong without it. What follows is dictated, so that every draft is
asked for the same tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from specplug_hf.reading.trials import Trials

CUE = 16  # tokens of the passage that stand at the text's end
LENGTH = 96  # tokens of the passage
COPIES = 6  # how often it stands in the haystack: what a small model has read once it does not repeat
BLOCK = COPIES * LENGTH
AWAY = 2  # budgets of other text between needle and cue: out of any window, and no further, as small models do not look far


@dataclass(frozen=True, slots=True)
class Haystack:
    """`ids` [B, L]: texts with their needles and cues; `control` [B, L]: other text in the needles' place; `answer` [B, n]."""

    ids: Tensor
    control: Tensor
    answer: Tensor


def place_of(context: int, budget: int) -> int | None:
    """Where the needle begins in a haystack of `context` tokens: `AWAY` budgets before its end; None: no room."""
    place = context - BLOCK - CUE - AWAY * budget
    return place if place > 0 else None


def haystack(texts: Tensor, passages: Tensor, place: int) -> Haystack:
    """`texts` [B, L] as haystacks of their length, with `COPIES` of `passages` [B, LENGTH] from `place` on, and the cue."""
    hay = texts.shape[1] - BLOCK - CUE
    cue, needle = passages[:, :CUE], passages.repeat(1, COPIES)
    before, behind, instead = texts[:, :place], texts[:, place:hay], texts[:, hay : hay + BLOCK]
    return Haystack(
        torch.cat([before, needle, behind, cue], dim=1),
        torch.cat([before, instead, behind, cue], dim=1),
        passages[:, CUE:],
    )


@dataclass(frozen=True, slots=True)
class Effect:
    """What a needle does to the target, at each of N trials: all bool [N]."""

    right: Tensor  # it says the passage's token
    guessed: Tensor  # it would without the needle, too
    changed: Tensor  # it would say something else without the needle

    @property
    def recalled(self) -> Tensor:
        """Right with the needle, wrong without it."""
        return self.right & ~self.guessed


@torch.no_grad()
def without_needle(target: PreTrainedModel, hay: Haystack) -> Tensor:
    """What `target` says at every token of the answer, the needle not there: [B, n] int64."""
    ids = torch.cat([hay.control, hay.answer[:, :-1]], dim=1)
    logits = target(input_ids=ids, use_cache=False, logits_to_keep=hay.answer.shape[1]).logits
    return logits.argmax(-1)


def effect(read: Trials, hay: Haystack, without: Tensor) -> Effect:
    """Of the needles of `hay`, dictated in `read`; `without`: see `without_needle`."""
    place = read.rows, read.generated
    answer, blind = hay.answer.cpu()[place], without.cpu()[place]
    return Effect(right=read.target == answer, guessed=blind == answer, changed=read.target != blind)
