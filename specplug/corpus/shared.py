"""The texts that finished requests have left behind: bounded, for any number of threads."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from specplug.corpus.text import in_pieces

FRESH = 8  # the index is made anew when a part in so many of it has come in since


@dataclass(frozen=True, slots=True)
class Indexed:
    """Texts one behind the other, and where each token stands in them. Never changed.

    `text` [T] int32, `END` before, between and behind the pieces. `places` [T] int64: all places, by token, then ascending.
    """

    text: Tensor
    places: Tensor
    tokens: Tensor  # [T] int32: text[places]

    @property
    def is_empty(self) -> bool:
        return len(self.text) == 1

    @classmethod
    def of(cls, pieces: list[Tensor]) -> Indexed:
        """Index `pieces`, each [n] int32."""
        text = in_pieces(pieces)
        tokens, places = text.sort(stable=True)
        return cls(text, places, tokens)

    def candidates(self, last: Tensor, most: int) -> tuple[Tensor, Tensor]:
        """The latest `most` places of each of the tokens `last` [B] int32: rows and places [n], both ascending."""
        stops = torch.searchsorted(self.tokens, last, right=True)
        counts = (stops - torch.searchsorted(self.tokens, last)).clamp(max=most)
        rows = torch.arange(len(last)).repeat_interleave(counts)
        ends = counts.cumsum(0)
        return rows, self.places[(stops - ends)[rows] + torch.arange(len(rows))]


class SharedTexts:
    """The newest `capacity` tokens of what was added, whole texts at a time: the oldest text goes first."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._lock = threading.Lock()
        self._texts: deque[Tensor] = deque()
        self._held = 0  # tokens of these texts
        self._fresh = 0  # tokens of those that are not in the index yet
        self._index = Indexed.of([])

    def add(self, text: Tensor) -> None:
        """Keep `text` [n] int32, or its end where it is longer than there is room for."""
        if not self.capacity or len(text) < 2:  # nothing goes on behind a single token
            return
        text = text[-self.capacity :]
        with self._lock:
            self._texts.append(text)
            self._held += len(text)
            self._fresh += len(text)
            while self._held > self.capacity:
                self._held -= len(self._texts.popleft())

    def index(self) -> Indexed:
        """What is kept, ready to be looked up in; a few of the newest texts may be missing."""
        with self._lock:
            if self._fresh and self._fresh * FRESH >= len(self._index.text):
                self._index, self._fresh = Indexed.of(list(self._texts)), 0
            return self._index
