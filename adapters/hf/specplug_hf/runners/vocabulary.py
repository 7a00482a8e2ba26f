"""Between the target's tokens and a draft model's: ids on the way in, logits on the way out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from specplug_hf.translation import Translation


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """`size`: the target's tokens, padding ids included. `translation` None: the draft has the same, but for padding ids."""

    translation: Translation | None
    size: int

    def read(self, tokens: Tensor) -> Tensor:
        """The target's `tokens`, any shape, as the draft reads them."""
        return tokens if self.translation is None else self.translation.tokens(tokens)

    def to_target(self, logits: Tensor) -> Tensor:
        """The draft's `logits` [..., V_draft] over the target's vocabulary [..., V]; padding ids cannot be drawn."""
        if self.translation is not None:
            return self.translation.logits(logits)
        extra = self.size - logits.shape[-1]
        if extra > 0:
            return torch.nn.functional.pad(logits, (0, extra), value=torch.finfo(logits.dtype).min)
        return logits[..., : self.size] if extra < 0 else logits
