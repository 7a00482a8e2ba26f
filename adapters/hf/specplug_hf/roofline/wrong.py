"""The target drafting for itself, wrong on purpose."""

from __future__ import annotations

from dataclasses import replace

import torch

from specplug.drafters import DraftRequest, SelfDraft
from specplug.tree import TreeBatch


class WrongSelfDraft(SelfDraft):
    """Every proposal is the token behind the drafted one: practically none is accepted, so each round commits one token.

    What random weights would accept says nothing, and a round takes the same time; so many rounds, then, take so many slots.
    """

    def draft(self, request: DraftRequest) -> TreeBatch:
        trees = super().draft(request)
        shifted = (trees.tokens[:, 1:] + 1) % self.host.vocab_size
        return replace(trees, tokens=torch.cat([trees.tokens[:, :1], shifted], dim=1))
