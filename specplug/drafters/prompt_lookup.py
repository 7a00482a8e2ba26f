"""`prompt_lookup`: propose what followed the last occurrence of the newest n-gram (Saxena 2023, "prompt lookup decoding")."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from specplug.drafters.base import Drafter, DraftRequest
from specplug.errors import OptionError
from specplug.host import Batch
from specplug.needs import Need
from specplug.tree import TreeBatch, TreeShape, chain_trees, roots_only
from specplug.trees import Chain


@dataclass
class PromptLookup(Drafter):
    """Match the last `ngram` tokens, else fewer down to `shortest`, in the row's own committed text.

    Where the match reaches into its own continuation the text runs in a loop, which is proposed to go on.
    """

    ngram: int = 3
    shortest: int = 1
    needs: ClassVar[frozenset[Need]] = frozenset({Need.HISTORY})
    checked: ClassVar[bool] = False
    rehearses: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 1 <= self.shortest <= self.ngram:
            raise OptionError(f"prompt_lookup: needs 1 <= shortest <= ngram, got {self.shortest} and {self.ngram}.")

    @property
    def key(self) -> str:
        return f"{type(self).__name__}[{self.ngram}-{self.shortest}]"

    def shapes(self) -> tuple[TreeShape, ...]:
        return Chain(10).build(), Chain(4).build()

    def draft(self, request: DraftRequest) -> TreeBatch:
        batch, length = request.batch, request.shape.depth
        if length == 0:
            return roots_only(batch.roots)
        start, matched = find_continuation(batch, self.ngram)
        history, ends = batch.history, batch.history_ends
        assert history is not None and ends is not None  # Need.HISTORY
        known = ends - start  # tokens from the continuation's start to the root
        counts = torch.where(matched >= known, length, known.clamp(max=length)).where(matched >= self.shortest, 0)
        longest = int(counts.max())
        if longest == 0:
            return roots_only(batch.roots)
        columns = start[:, None] + torch.arange(longest, device=history.device) % known[:, None].clamp(min=1)
        tokens = history.gather(1, columns.clamp(max=history.shape[1] - 1))
        return chain_trees(batch.roots, tokens, counts if batch.num_rows > 1 else None)


def find_continuation(batch: Batch, ngram: int) -> tuple[Tensor, Tensor]:
    """Where the text goes on after the most recent earlier occurrence of the longest matching suffix.

    Returns the column of the first continuing token and how many tokens before it match, at most `ngram`; both [B] int64.
    """
    history, ends, starts = batch.history, batch.history_ends, batch.history_starts
    assert history is not None and ends is not None and starts is not None
    find = _among_equals if history.device.type == "cpu" else _everywhere
    return find(history, ends, starts, ngram)


def _among_equals(history: Tensor, ends: Tensor, starts: Tensor, ngram: int) -> tuple[Tensor, Tensor]:
    """Looks only where the root's token stands, which are few places: to know them, a device would have to be waited for."""
    width = history.shape[1]
    column = torch.arange(width)
    equal = history == history.gather(1, ends[:, None] - 1)
    equal &= (column < ends[:, None] - 1) & (column >= starts[:, None])
    rows, places = equal.nonzero(as_tuple=True)
    first, last = starts[rows], ends[rows] - 1
    run, unbroken = torch.ones_like(places), torch.ones_like(places, dtype=torch.bool)
    for back in range(1, min(ngram, width)):
        here = places - back  # below zero it counts from the end, and is not before the row's first token
        unbroken = unbroken & (here >= first) & (history[rows, here] == history[rows, last - back])
        run += unbroken
    # the longest match, and among equals the most recent
    best = torch.zeros_like(ends).scatter_reduce_(0, rows, run * width + places, "amax")
    return best % width + 1, best // width


def _everywhere(history: Tensor, ends: Tensor, starts: Tensor, ngram: int) -> tuple[Tensor, Tensor]:
    """Looks at every place at once."""
    width = history.shape[1]
    column = torch.arange(width, device=history.device)
    # run[b, j]: how many tokens up to column j equal as many tokens up to the root, at most `ngram`
    run = torch.zeros_like(history)
    unbroken = (column[None] < ends[:, None] - 1) & (column[None] >= starts[:, None])
    for back in range(min(ngram, width)):
        suffix = history.gather(1, (ends - 1 - back).clamp(min=0)[:, None])
        same = torch.zeros_like(unbroken)
        same[:, back:] = history[:, : width - back] == suffix
        inside = (column[None] - back >= starts[:, None]) & (ends[:, None] - 1 - back >= starts[:, None])
        unbroken = unbroken & same & inside
        run += unbroken
    # the longest match, and among equals the most recent
    best = (run * width + column).argmax(dim=1)
    return best + 1, run.gather(1, best[:, None]).squeeze(1)
