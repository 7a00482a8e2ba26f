"""What is written while policies are asked: the target's own greedy text, or a text that is dictated."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from specplug.drafters import DraftRequest, SelfDraft
from specplug.kv_policies import Full
from specplug.tree import TreeBatch, fill_shape
from specplug.verify import Verdict, verify_greedy
from specplug_hf.generation import Generation


class Script(Protocol):
    """Opened on one generation that has read its prompt."""

    def open(self, generation: Generation) -> None:
        """Write the first token."""
        ...

    def chains(self, request: DraftRequest) -> TreeBatch:
        """The next tokens, as a chain a row."""
        ...

    def verdict(self, trees: TreeBatch, said: Tensor) -> Verdict:
        """What of the chains is written, and what behind it, where the target says `said` [B, N] at their nodes."""
        ...


class Greedy:
    """The target's greedy text. The target itself proposes it, reading everything: nothing is rejected but ties of rounding."""

    def open(self, generation: Generation) -> None:
        generation.first_token()
        self._draft = SelfDraft(Full()).open(generation.host)

    def chains(self, request: DraftRequest) -> TreeBatch:
        return self._draft.draft(request)

    def verdict(self, trees: TreeBatch, said: Tensor) -> Verdict:
        return verify_greedy(trees, said)


class Dictated:
    """`text` [B, n] int64, whatever the target says; all rows go in step."""

    def __init__(self, text: Tensor) -> None:
        self._text = text

    def open(self, generation: Generation) -> None:
        rows, progress = len(self._text), generation.progress
        progress.append(range(rows), self._text[:, :1], [1] * rows)
        progress.advance()
        self._written = 1

    def chains(self, request: DraftRequest) -> TreeBatch:
        self._written += request.shape.num_nodes
        self._next = self._from(self._written - request.shape.num_nodes, request.shape.num_nodes)
        return fill_shape(request.shape, torch.cat([request.batch.roots[:, None], self._next[:, :-1]], dim=1))

    def verdict(self, trees: TreeBatch, said: Tensor) -> Verdict:
        rows, nodes = trees.tokens.shape
        path = torch.arange(nodes, device=said.device).expand(rows, -1)
        return Verdict(path, path[:, -1], self._next[:, -1])

    def _from(self, start: int, count: int) -> Tensor:
        """`count` tokens of every row from `start` on; beyond the text its last one, which nobody reads."""
        place = torch.arange(start, start + count, device=self._text.device).clamp(max=self._text.shape[1] - 1)
        return self._text[:, place]
