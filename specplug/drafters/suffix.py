"""`suffix`: propose what followed the row's last tokens earlier, in its own text and in what other requests have generated.

SuffixDecoding (arXiv 2411.04975; Arctic Inference). The paper keeps a suffix tree of each request and one of all outputs; here
both are looked up in arrays of tokens, which answer the same question: where the longest end of the text stands, and what
share of these places goes which way. In both alike the longer match counts for more, wherever it stands.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from specplug.corpus.occurrences import Occurrences, endings, following, going_round, joined, matches
from specplug.corpus.shared import Indexed, SharedTexts
from specplug.drafters.base import Drafter, DraftRequest
from specplug.drafters.continuations import check_probability, continuation_trees
from specplug.drafters.row_texts import RowTexts
from specplug.errors import OptionError
from specplug.needs import Need
from specplug.tree import TreeBatch, TreeShape, roots_only
from specplug.trees import Chain, Sequoia

if TYPE_CHECKING:
    from specplug.round import Round

PLACES = 32  # most occurrences of a row that vote, in its own text and in the others'
CANDIDATES = 1024  # latest places of the row's last token in the others' texts that are looked at


@dataclass
class Suffix(Drafter):
    """Works on the CPU: what was committed is copied there once a round, before drafting.

    `memory`: tokens of finished requests' texts that are kept for all requests of this drafter, the oldest forgotten first; 0:
    none. `max_match`: most tokens that are compared. `min_probability`: nodes that a smaller share of the occurrences leads to
    are not proposed. `prompts`: whether prompts are kept for others too, and not only what was generated.

    `sampled`: whether sampled rows look in others' texts as well. What they draw then goes with what others have said, so that
    a seed does not repeat its text; and rows that share a seed must not share texts, or their law would not be the target's:
    a proposal must know nothing of the draw that decides on it.
    """

    memory: int = 65536
    max_match: int = 64
    min_probability: float = 0.1
    prompts: bool = False
    sampled: bool = False
    needs: ClassVar[frozenset[Need]] = frozenset({Need.HISTORY})
    checked: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.memory < 0:
            raise OptionError(f"suffix: memory={self.memory} must not be negative; 0 shares nothing between requests.")
        if self.max_match < 1:
            raise OptionError(f"suffix: max_match={self.max_match} must be at least 1.")
        check_probability("suffix", self.min_probability)
        self._shared = SharedTexts(self.memory)  # all working copies have this one

    @property
    def key(self) -> str:
        return f"{type(self).__name__}[{self.memory}, {self.max_match}, {self.min_probability:g}]"

    def shapes(self) -> tuple[TreeShape, ...]:
        return Chain(10).build(), Sequoia(16, 8).build(), Chain(4).build()

    def setup(self) -> None:
        self._texts = RowTexts()

    def draft(self, request: DraftRequest) -> TreeBatch:
        batch, shape = request.batch, request.shape
        if not shape.size:
            return roots_only(batch.roots)
        texts, lengths = self._texts.read(batch)
        ending = endings(texts, lengths, self.max_match)
        found = in_own_text(texts, lengths, ending, shape.depth)
        index = self._shared.index()
        if not index.is_empty and (self.sampled or not batch.sampling):
            found = joined([found, in_others(index, ending, shape.depth)])
        return continuation_trees(batch.roots, found, shape.size, self.min_probability, request.explain)

    def observe(self, finished: Round) -> None:
        if self.memory:
            self._texts.observe(finished)

    def forget(self, rows: Sequence[Hashable]) -> None:
        for row in rows:
            text, before = self._texts.take(row)
            self._shared.add(text if self.prompts else text[max(0, before - 1) :])  # the first root was generated


def in_own_text(texts: Tensor, lengths: Tensor, ending: Tensor, depth: int) -> Occurrences:
    """Where the rows of `texts` [B, T] say again what they end in: `ending` [B, W]."""
    row = torch.arange(len(texts))
    hits = texts == ending[:, :1]
    hits[row, lengths] = False  # the root itself
    rows, columns = hits.nonzero(as_tuple=True)
    flat, width = texts.flatten(), texts.shape[1]
    rows, places, matched = matches(flat, rows, rows * width + columns, ending, PLACES)
    return Occurrences(rows, matched, going_round(flat, places, (row * width + lengths)[rows], matched, depth))


def in_others(index: Indexed, ending: Tensor, depth: int) -> Occurrences:
    """Where the texts in `index` say what the rows end in: `ending` [B, W]."""
    rows, places = index.candidates(ending[:, 0].contiguous(), CANDIDATES)
    rows, places, matched = matches(index.text, rows, places, ending, PLACES)
    return Occurrences(rows, matched, following(index.text, places, depth))
