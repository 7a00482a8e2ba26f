"""A text that grows at its end, in which the end of a text is found without looking through it.

SuffixDecoding (arXiv 2411.04975, section 3) keeps a suffix tree of every text for this. Here every place knows the place before it
that ends in the same tokens, for a few numbers of tokens (hash chains, as in Deflate, RFC 1951, section 4): a new token costs the
same however long the text is, what was added last is taken back as it came, and the beginning may be let go.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from sys import getsizeof

from specplug.corpus.occurrences import NEAR, agreeing

GRAMS = (8, 3, 1)  # numbers of tokens by which places are chained; the last must be 1, so that no match is missed
NUMBER_BYTES = 32  # of an integer in a list or dictionary, about
LOOKED_AT = 16  # latest places of a chain that are compared


class GrowingText:
    """`tokens`: the text, not to be written to. Places are indices into it."""

    def __init__(self, tokens: Sequence[int] = ()) -> None:
        self.tokens: list[int] = []
        # chains count from the first token that ever was, `_gone` tokens before those that are left
        self._gone = 0
        # the last place of every gram's hash, of grams that are still whole
        self._latest: tuple[dict[int, int], ...] = tuple({} for _ in GRAMS)
        self._earlier = tuple(array("q") for _ in GRAMS)  # the place before each with the same hash, -1 = none
        self._chains = tuple(zip(GRAMS, self._latest, self._earlier, strict=True))
        self.extend(tokens)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def held_bytes(self) -> int:
        """Memory that it takes, about."""
        numbers = len(self.tokens) + 2 * sum(map(len, self._latest))
        return NUMBER_BYTES * numbers + sum(map(getsizeof, (self.tokens, *self._latest, *self._earlier)))

    def extend(self, tokens: Sequence[int]) -> None:
        """Add `tokens` at the end."""
        start = len(self.tokens)
        self.tokens.extend(tokens)
        stop = len(self.tokens)
        for gram, latest, earlier in self._chains:
            first = max(start, gram - 1)  # no whole gram ends before it
            if len(earlier) < first:
                earlier.extend([-1] * (min(first, stop) - len(earlier)))
            for place in range(first, stop):
                key = self._key(gram, place)
                earlier.append(latest.get(key, -1))
                latest[key] = place + self._gone

    def cut(self, length: int) -> None:
        """Take back all but the first `length` tokens: nothing of the others is found any more."""
        for gram, latest, earlier in self._chains:
            for place in range(len(self.tokens) - 1, max(length, gram - 1) - 1, -1):
                before = earlier.pop()  # the newest first: what each has hidden is there again
                if before < self._gone + gram - 1:
                    del latest[self._key(gram, place)]
                else:
                    latest[self._key(gram, place)] = before
            del earlier[length:]
        del self.tokens[length:]

    def let_go(self, count: int) -> None:
        """Forget the first `count` tokens."""
        self._gone += count
        for gram, latest, earlier in self._chains:
            whole = self._gone + gram - 1  # the first place that a whole gram ends in, from now on
            for place in range(gram - 1, min(count + gram - 1, len(self.tokens))):
                key = self._key(gram, place)
                if latest.get(key, whole) < whole:
                    del latest[key]
            del earlier[:count]
        del self.tokens[:count]

    def _key(self, gram: int, place: int) -> int:
        """The hash of the gram that ends in `place`."""
        return self.tokens[place] if gram == 1 else hash(tuple(self.tokens[place - gram + 1 : place + 1]))

    def find(self, ending: Sequence[int], stop: int, most: int) -> list[tuple[int, int]]:
        """Where the text says what `ending`, a list of tokens, ends in, before the place `stop`.

        Returns how many tokens match, at most `most`, and the place of the last of them, the longest and then the latest first. Of
        each chain the latest places are looked at; of what is much shorter than the longest some may be missing.
        """
        found: list[tuple[int, int]] = []
        seen: set[int] = set()
        longest = 0
        for gram, latest, earlier in self._chains:
            if gram > min(most, len(ending)):
                continue
            key = ending[-1] if gram == 1 else hash(tuple(ending[-gram:]))
            place, looks = latest.get(key, -1) - self._gone, LOOKED_AT
            while place >= 0 and looks:
                if place < stop and place not in seen:
                    looks -= 1
                    matched = agreeing(self.tokens, place, ending, most)
                    if matched >= gram:  # else it is another gram with the same hash
                        seen.add(place)
                        found.append((matched, place))
                        longest = max(longest, matched)
                place = earlier[place] - self._gone
            if longest - NEAR >= gram - 1:
                break  # whatever a shorter gram finds is too short to count
        found.sort(reverse=True)
        return found
