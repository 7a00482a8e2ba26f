"""`prompt_lookup`: propose what followed the last occurrence of the newest n-gram (Saxena 2023, "prompt lookup decoding")."""

from __future__ import annotations

import ctypes
import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from specplug.drafters.base import Drafter, DraftRequest
from specplug.errors import OptionError
from specplug.hindsight import Hindsight
from specplug.host import Batch
from specplug.needs import Need
from specplug.tree import TreeBatch, TreeShape, chain_trees, roots_only
from specplug.trees import Chain

UTF32 = f"utf-32-{sys.byteorder[0]}e"  # without a mark of the order of bytes


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
        assert batch.history is not None  # Need.HISTORY
        look_up = _in_strings if batch.history.device.type == "cpu" else _in_tensors
        tokens, counts = look_up(batch, self.ngram, self.shortest, length)
        if not tokens.shape[1]:
            return roots_only(batch.roots)
        return chain_trees(batch.roots, tokens, counts if batch.num_rows > 1 else None)

    def hindsight(self, batch: Batch, ago: Sequence[int], shape: TreeShape) -> Hindsight | None:
        assert batch.history is not None  # Need.HISTORY
        texts = _strings(batch) if batch.history.device.type == "cpu" else None
        if texts is None:
            return None
        taken, proposed = [], []
        for text, back in zip(itertools.cycle(texts), ago, strict=False):
            end = max(1, len(text) - back)
            said = _continuation(text[:end], self.ngram, self.shortest, shape.depth)
            taken.append(_agreement(said, text[end:]))
            proposed.append(bool(said))
        return Hindsight(taken, proposed)


def _strings(batch: Batch) -> list[str] | None:
    """The rows' texts with a character a token; None if there are more tokens than characters.

    Python searches strings in less time than a dozen tensor operations start in.
    """
    history, ends, starts = batch.history, batch.history_ends, batch.history_starts
    assert history is not None and ends is not None and starts is not None
    codes, width = history.int().contiguous(), history.shape[1]
    characters, found = ctypes.string_at(codes.data_ptr(), codes.nbytes), []
    for row, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        first, last = (4 * (row * width + column) for column in (start, end))
        try:
            found.append(characters[first:last].decode(UTF32, "surrogatepass"))
        except UnicodeDecodeError:  # a vocabulary of more than a million tokens
            return None
    return found


def _in_strings(batch: Batch, ngram: int, shortest: int, length: int) -> tuple[Tensor, Tensor]:
    """What follows, at most `length` tokens a row: [B, L] and how many of them, [B]; both int64."""
    texts = _strings(batch)
    if texts is None:
        return _in_tensors(batch, ngram, shortest, length)
    found = [_continuation(text, ngram, shortest, length) for text in texts]
    counts = [len(tokens) for tokens in found]
    longest = max(counts)
    padded = "".join([tokens.ljust(longest, "\0") for tokens in found])
    return torch.tensor([*map(ord, padded)]).view(len(found), longest), torch.tensor(counts)


def _continuation(text: str, ngram: int, shortest: int, length: int) -> str:
    """What followed the most recent earlier occurrence of the longest suffix of `text`."""
    for matched in range(min(ngram, len(text) - 1), shortest - 1, -1):
        place = text.rfind(text[-matched:], 0, -1)
        if place >= 0:
            start = place + matched
            if matched >= len(text) - start:
                return (text[start:] * length)[:length]
            return text[start : start + length]
    return ""


def _agreement(said: str, real: str) -> int:
    """Tokens until they differ, or one of them ends."""
    return next((n for n, (a, b) in enumerate(zip(said, real, strict=False)) if a != b), min(len(said), len(real)))


def _in_tensors(batch: Batch, ngram: int, shortest: int, length: int) -> tuple[Tensor, Tensor]:
    """The same where the texts are on a device, of which only the longest continuation's length is asked."""
    history, ends = batch.history, batch.history_ends
    assert history is not None and ends is not None
    start, matched = _after_last(batch, ngram)
    known = ends - start  # tokens from the continuation's start to the root
    counts = torch.where(matched >= known, length, known.clamp(max=length)).where(matched >= shortest, 0)
    columns = start[:, None] + torch.arange(int(counts.max()), device=history.device) % known[:, None].clamp(min=1)
    return history.gather(1, columns.clamp(max=history.shape[1] - 1)), counts


def _after_last(batch: Batch, ngram: int) -> tuple[Tensor, Tensor]:
    """The column after the most recent earlier occurrence of the longest suffix, and how many tokens match, at most `ngram`; both [B] int64."""
    history, ends, starts = batch.history, batch.history_ends, batch.history_starts
    assert history is not None and ends is not None and starts is not None
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
