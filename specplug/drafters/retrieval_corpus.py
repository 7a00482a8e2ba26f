"""`retrieval_corpus`: propose what followed the row's last tokens in the user's own files.

REST (arXiv 2311.08252): the longest end of the text that stands in a datastore, and a tree of what most often follows it there;
ADED (arXiv 2407.08223) keeps the tree's best paths likewise. The target's tokenizer makes tokens of the files once, and all
places are sorted by what stands before them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol, cast

from torch import Tensor

from specplug.corpus.files import TOKENS, corpus_files, read_text
from specplug.corpus.loading import load_corpus
from specplug.drafters.base import Drafter, DraftRequest
from specplug.drafters.continuations import Rule, continuation_trees
from specplug.drafters.row_texts import newest
from specplug.errors import OptionError
from specplug.needs import Need
from specplug.tree import TreeBatch, TreeShape, roots_only
from specplug.trees import Chain, Sequoia

PLACES = 16  # most places in the corpus that vote
LOOKED_AT = 16  # bytes a token of `max_tokens` that are looked at when the drafter is made


class Tokenizing(Protocol):
    """A host with Need.TOKENIZER."""

    def tokenize(self, text: str) -> Tensor:
        """The target's tokens of `text`, no special ones added: [n] int64."""
        ...


@dataclass
class RetrievalCorpus(Drafter):
    """`path`: a file, or a folder whose files match `pattern`: text in UTF-8, or `.safetensors` with int32 `tokens` and the `ends`
    of its documents (corpus/files.py writes such a file). At most `max_tokens` are read.

    Works on the CPU: each row's last `max_match` tokens are copied there once a round. `min_probability`: nodes that a smaller share
    of the places leads to are not proposed; `per_match`: most tokens that are proposed for each that matches. As they are, nothing is
    proposed where nothing good is found; where tokens are verified for nothing, as on a GPU for few rows, `min_probability=0.05,
    per_match=16` accepts more. Made once for each corpus and tokenizer: sorting takes a second a million tokens.
    """

    path: str
    pattern: str = "**/*"
    max_tokens: int = 1 << 20
    max_match: int = 16
    min_probability: float = 0.3
    per_match: float = 2.0
    needs: ClassVar[frozenset[Need]] = frozenset({Need.HISTORY})
    checked: ClassVar[bool] = False
    rehearses: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.max_tokens < 2:
            raise OptionError(f"retrieval_corpus: max_tokens={self.max_tokens} must be at least 2.")
        if self.max_match < 1:
            raise OptionError(f"retrieval_corpus: max_match={self.max_match} must be at least 1.")
        self._rule = Rule("retrieval_corpus", self.min_probability, self.per_match)
        self._files = corpus_files(self.path, self.pattern)
        self._texts = [file for file in self._files if file.suffix != TOKENS]
        left = LOOKED_AT * self.max_tokens
        for file in self._texts:  # what is no text is refused here, as far as it will be read at all
            left -= len(read_text(file, self._root))
            if left <= 0:
                break

    @property
    def _root(self) -> Path:
        return Path(self.path).expanduser()

    @property
    def required(self) -> frozenset[Need]:
        return self.needs | ({Need.TOKENIZER} if self._texts else set())

    @property
    def key(self) -> str:
        return f"{type(self).__name__}[{self.path}, {self.pattern}, {self.max_match}, {self._rule.key}]"

    def shapes(self) -> tuple[TreeShape, ...]:
        return Chain(3).build(), Sequoia(16, 8).build(), Chain(6).build()

    def setup(self) -> None:
        self._corpus = load_corpus(
            self._files,
            self._root,
            cast(Tokenizing, self.host).tokenize if self._texts else None,
            self.host.identity[0],
            self.host.vocab_size,
            self.max_tokens,
            self.max_match,
        )

    def draft(self, request: DraftRequest) -> TreeBatch:
        batch, shape = request.batch, request.shape
        if not shape.size:
            return roots_only(batch.roots)
        endings = [ending for _, _, ending in newest(batch, self.max_match)]
        found = [self._corpus.occurrences(ending, PLACES, shape.depth) for ending in endings]
        return continuation_trees(batch.roots, found, shape, self._rule, request.explain)
