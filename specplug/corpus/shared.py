"""The texts that finished requests have left behind: bounded, for any number of threads."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence

from specplug.corpus.growing import GrowingText
from specplug.corpus.occurrences import Occurrence, following
from specplug.corpus.text import END


class SharedTexts:
    """The newest `capacity` tokens of what was added, whole texts at a time: the oldest text goes first.

    They stand one behind the other in one text, each with `END` behind it.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._lock = threading.Lock()
        self._lengths: deque[int] = deque()  # of the texts that are kept
        self._text = GrowingText()

    def add(self, text: Sequence[int]) -> None:
        """Keep `text`, or its end where it is longer than there is room for."""
        if not self.capacity or len(text) < 2:  # nothing goes on behind a single token
            return
        text = text[-self.capacity :]
        with self._lock:
            self._text.extend([*text, END])
            self._lengths.append(len(text))
            too_many = self.held - self.capacity
            gone = 0
            while too_many > 0:
                too_many -= self._lengths[0]
                gone += self._lengths.popleft() + 1
            if gone:
                self._text.let_go(gone)

    @property
    def held(self) -> int:
        """Tokens of the texts that are kept."""
        return len(self._text) - len(self._lengths)

    def occurrences(self, ending: Sequence[int], most: int, depth: int) -> list[Occurrence]:
        """Where they say what `ending`, a list of tokens, ends in: at most `most` tokens are compared, `depth` follow."""
        with self._lock:
            text = self._text
            found = text.find(ending, len(text), most)
            return [Occurrence(matched, following(text.tokens, place, depth)) for matched, place in found]
