"""A drafter that knows the answer: everything deep in a tree gets accepted, which a mere draft rarely achieves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch

from specplug import Drafter, DraftRequest, Need, TreeBatch
from specplug.tree import fill_shape


class Oracle(Drafter):
    """Proposes how `texts` (prompts with plain generation's answers) go on, beside siblings that are wrong.

    Every `spoilt`-th round one of its levels is wrong as a whole.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({Need.HISTORY})

    def __init__(self, texts: Sequence[Sequence[int]], spoilt: int = 3) -> None:
        self.texts, self.spoilt = [list(text) for text in texts], spoilt

    def setup(self) -> None:
        self.rounds = 0

    def draft(self, request: DraftRequest) -> TreeBatch:
        batch, shape = request.batch, request.shape
        assert batch.history is not None and batch.history_starts is not None and batch.history_ends is not None
        self.rounds += 1
        tokens = torch.zeros((batch.num_rows, shape.num_nodes), dtype=torch.int64)
        tokens[:, 0] = batch.roots
        bounds = zip(batch.history_starts.tolist(), batch.history_ends.tolist(), strict=True)
        for place, (start, end) in enumerate(bounds):
            answer = self._following(batch.history[place, start:end].tolist(), shape.depth)
            for depth, (first, stop) in enumerate(shape.levels[1:]):
                right = answer[depth] if depth < len(answer) else 0
                tokens[place, first:stop] = right + torch.arange(stop - first)
                if self.rounds % self.spoilt == 0 and depth == self.rounds % (shape.depth + 1):
                    tokens[place, first:stop] += 1
        return fill_shape(shape, (tokens % self.host.vocab_size).to(batch.roots.device))

    def _following(self, text: list[int], count: int) -> list[int]:
        """What comes behind `text` in one of the texts; nothing if none begins with it."""
        known = next((t for t in self.texts if t[: len(text)] == text), [])
        return known[len(text) : len(text) + count]
