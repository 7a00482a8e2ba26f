"""A text's places in the order of what stands before them: a suffix array of the text read backwards.

Where the end of another text belongs in this order, its longest matches stand on both sides.
"""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from specplug.corpus.occurrences import NEAR, Occurrence, agreeing, following

WIDTH = 4  # bytes of a token
SHIFT = 1  # `END` becomes 0, so that tokens as unsigned numbers sort as they do


@dataclass(frozen=True, slots=True)
class Contexts:
    """`text`: of T tokens, `END` around every piece. `places` of T: by their token, then by the one before it, and so on for at least
    `most` tokens. `backwards`: the text from its end to its beginning, as bytes that sort as the tokens do.
    """

    text: array[int]
    places: array[int]
    backwards: bytes
    most: int

    @classmethod
    def of(cls, text: Tensor, most: int) -> Contexts:
        """Sort the places of `text` [T] int32."""
        tokens = text.tolist()
        return cls(array("i", tokens), array("i", by_context(text, most).tolist()), _as_bytes(tokens), most)

    @property
    def held_bytes(self) -> int:
        """Memory that it takes."""
        return sum(map(sys.getsizeof, (self.text, self.places, self.backwards)))

    def occurrences(self, ending: Sequence[int], count: int, depth: int) -> list[Occurrence]:
        """The longest matches of `ending`, tokens of which the last `most` are compared: up to `count` before and behind where it belongs.

        `depth` tokens follow each.
        """
        ending = list(ending[-self.most :])
        size, last, backwards = WIDTH * self.most, len(self.text) - 1, self.backwards

        def context(place: int) -> bytes:
            start = WIDTH * (last - place)
            return backwards[start : start + size]

        low = bisect_left(self.places, _as_bytes(ending), key=context)
        found: list[tuple[int, int]] = []
        longest = 0
        for ranks in (range(low, min(low + count, last + 1)), range(low - 1, max(low - 1 - count, -1), -1)):
            for rank in ranks:  # matches grow no longer on the way out
                place = self.places[rank]
                before = self.text[max(0, place + 1 - self.most) : place + 1].tolist()
                matched = agreeing(before, len(before) - 1, ending, self.most)
                if not matched or matched <= longest - NEAR:
                    break
                longest = max(longest, matched)
                found.append((matched, place))
        found.sort(reverse=True)
        return [Occurrence(matched, following(self.text, place, depth)) for matched, place in found[:count]]


def by_context(text: Tensor, most: int) -> Tensor:
    """The places of `text` [T] in the order of their tokens and those before, `most` of them or more: [T] int64.

    Prefix doubling (Manber and Myers, SIAM J. Comput. 22, 1993): a rank by 2^k tokens gives one by twice as many. A sort of T
    numbers for every doubling.
    """
    order, rank = _ranked(text.long())
    span = 1
    while span < min(most, len(text)) and int(rank[order[-1]]) < len(text) - 1:
        earlier = torch.zeros_like(rank)
        earlier[span:] = rank[:-span] + 1  # 0: nothing stands there
        order, rank = _ranked(rank * (len(text) + 1) + earlier)
        span *= 2
    return order


def _ranked(keys: Tensor) -> tuple[Tensor, Tensor]:
    """The order of `keys` [T] and each one's rank, equal for equal keys."""
    values, order = keys.sort(stable=True)
    rank = torch.zeros_like(order)
    rank[order[1:]] = (values[1:] != values[:-1]).cumsum(0)
    return order, rank


def _as_bytes(tokens: Sequence[int]) -> bytes:
    """`tokens` from the last to the first."""
    numbers = array("I", [token + SHIFT for token in reversed(tokens)])
    if sys.byteorder == "little":
        numbers.byteswap()
    return numbers.tobytes()
