"""A text's places in the order of what stands before them: a suffix array of the text read backwards.

Where the end of another text belongs in this order, its longest matches stand on both sides.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from specplug.corpus.text import END


@dataclass(frozen=True, slots=True)
class Contexts:
    """`text` [T] int32, `END` around every piece. `places` [T] int64: by their token, then by the one before it, and so on for
    at least `most` tokens. `keys` [T] int64: the token and the one before it, as one number, in the order of `places`.
    """

    text: Tensor
    places: Tensor
    keys: Tensor
    most: int

    @classmethod
    def of(cls, text: Tensor, most: int) -> Contexts:
        """Sort the places of `text`."""
        places = by_context(text, most)
        return cls(text, places, _pairs(text[places], text[(places - 1).clamp(min=0)]), most)

    def nearest(self, ending: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The `count` places before and behind where each `ending` [B, W] belongs: rows ascending, and places, [n] each.

        Only places of the ending's own token. An ending has its newest token first, and W is at most `most`.
        """
        before = ending[:, 1] if ending.shape[1] > 1 else torch.full_like(ending[:, 0], END)
        pairs = _pairs(ending[:, 0], before)
        low = torch.searchsorted(self.keys, pairs)
        high = torch.searchsorted(self.keys, pairs, right=True)
        for _ in range(int((high - low).max()).bit_length()):
            middle = (low + high) // 2
            less = self._less(middle, ending) & (low < high)
            low, high = torch.where(less, middle + 1, low), torch.where(less, high, middle)
        around = low[:, None] + torch.arange(-count, count)
        inside = (around >= 0) & (around < len(self.places))
        found = self.places[around.clamp(min=0, max=len(self.places) - 1)]
        inside &= self.text[found] == ending[:, :1]
        return inside.nonzero()[:, 0], found[inside]

    def _less(self, ranks: Tensor, ending: Tensor) -> Tensor:
        """Whether the context at each of `ranks` [B] comes before the `ending` [B, W] of its row: [B]."""
        columns = self.places[ranks.clamp(max=len(self.places) - 1)][:, None] - torch.arange(ending.shape[1])
        found = self.text[columns.clamp(min=0)]
        place = (found != ending).int().argmax(1, keepdim=True)
        return (found.gather(1, place) < ending.gather(1, place)).squeeze(1)


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


def _pairs(tokens: Tensor, before: Tensor) -> Tensor:
    """Two int32 as one number of 64 bits, that sorts as they do; nothing below `NOTHING`, which is -2, is among them."""
    return ((tokens.long() + 2) << 32) + (before.long() + 2)
