"""`suffix`: propose what followed the row's last tokens earlier, in its own text and in what other requests have generated.

SuffixDecoding (arXiv 2411.04975; Arctic Inference). The paper keeps a suffix tree of each request and one of all outputs; here
both are texts with chains of equal n-grams (corpus/growing.py), which answer the same question: where the longest end of the text
stands, and what share of these places goes which way. In both alike the longer match counts for more, wherever it stands.
What is proposed is what was planned, as there: a chain of the likeliest tokens, or a tree.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from specplug.corpus.growing import GrowingText
from specplug.corpus.occurrences import Occurrence, going_round
from specplug.corpus.shared import SharedTexts
from specplug.drafters.base import Drafter, DraftRequest
from specplug.drafters.continuations import Rule, continuation_trees
from specplug.drafters.row_texts import RowTexts
from specplug.errors import OptionError
from specplug.needs import Need
from specplug.tree import TreeBatch, TreeShape, roots_only
from specplug.trees import Chain, Sequoia

if TYPE_CHECKING:
    from specplug.round import Round


@dataclass
class Suffix(Drafter):
    """Works on the CPU: what was committed is copied there once a round, before drafting.

    `memory`: tokens of finished requests' texts that are kept for all requests of this drafter, the oldest forgotten first; 0:
    none. `max_match`: most tokens that are compared. `min_probability`: nodes that a smaller share of the occurrences leads to
    are not proposed. `per_match`: most tokens that are proposed for each that matches (the paper's alpha): a short match is seldom
    right for long, and what is verified in vain costs time. `prompts`: whether prompts are kept for others too, and not only what
    was generated.

    `sampled`: whether sampled rows look in others' texts as well. What they draw then goes with what others have said, so that
    a seed does not repeat its text; and rows that share a seed must not share texts, or their law would not be the target's:
    a proposal must know nothing of the draw that decides on it.
    """

    memory: int = 65536
    max_match: int = 64
    min_probability: float = 0.1
    per_match: float = 3.0
    prompts: bool = False
    sampled: bool = False
    needs: ClassVar[frozenset[Need]] = frozenset({Need.HISTORY})
    checked: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.memory < 0:
            raise OptionError(f"suffix: memory={self.memory} must not be negative; 0 shares nothing between requests.")
        if self.max_match < 1:
            raise OptionError(f"suffix: max_match={self.max_match} must be at least 1.")
        self._rule = Rule("suffix", self.min_probability, self.per_match)
        self._shared = SharedTexts(self.memory)  # all working copies have this one

    @property
    def key(self) -> str:
        return f"{type(self).__name__}[{self.memory}, {self.max_match}, {self._rule.key}]"

    def shapes(self) -> tuple[TreeShape, ...]:
        return Chain(16).build(), Chain(24).build(), Sequoia(16, 8).build(), Chain(4).build()

    def setup(self) -> None:
        self._texts = RowTexts()

    def draft(self, request: DraftRequest) -> TreeBatch:
        batch, shape = request.batch, request.shape
        if not shape.size:
            return roots_only(batch.roots)
        texts = self._texts.read(batch)
        found = [in_own_text(text, self.max_match, shape.depth) for text in texts]
        if self.memory and (self.sampled or not batch.sampling):
            for row, text in zip(found, texts, strict=True):
                row += self._shared.occurrences(text.tokens, self.max_match, shape.depth)
        return continuation_trees(batch.roots, found, shape, self._rule, request.explain)

    def observe(self, finished: Round) -> None:
        if self.memory:
            self._texts.observe(finished)

    def forget(self, rows: Sequence[Hashable]) -> None:
        for row in rows:
            text, before = self._texts.take(row)
            self._shared.add(text if self.prompts else text[max(0, before - 1) :])  # the first root was generated


def in_own_text(text: GrowingText, most: int, depth: int) -> list[Occurrence]:
    """Where `text` says again what it ends in: at most `most` tokens are compared, `depth` follow."""
    found = text.find(text.tokens, len(text) - 1, most)
    return [Occurrence(matched, going_round(text.tokens, place, matched, depth)) for matched, place in found]
