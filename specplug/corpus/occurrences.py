"""Where the end of a row's text stands elsewhere too, and what goes on behind it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from specplug.corpus.text import END

GLANCE = 8  # tokens that every place is compared in; the best of them are compared in full
NOTHING = -2  # stands in an ending before the text's first token, and equals no token of any text


@dataclass(frozen=True, slots=True)
class Occurrences:
    """n places where rows' texts go on, all on the CPU.

    `rows` [n] int64: of the batch. `matched` [n] int64 >= 1: tokens before the place that equal the row's last ones.
    `follows` [n, D] int32: the tokens from the place on, `END` from where the text ends.
    """

    rows: Tensor
    matched: Tensor
    follows: Tensor

    def __len__(self) -> int:
        return len(self.rows)


def joined(parts: list[Occurrences]) -> Occurrences:
    """All of `parts`, which look equally far."""
    return Occurrences(
        torch.cat([part.rows for part in parts]),
        torch.cat([part.matched for part in parts]),
        torch.cat([part.follows for part in parts]),
    )


def endings(texts: Tensor, lengths: Tensor, most: int) -> Tensor:
    """The last `most` tokens of each row of `texts` [B, T], the newest first: [B, most] int32, `NOTHING` where there are fewer.

    Row b's text stands in [1, 1 + lengths[b]).
    """
    columns = lengths[:, None] - torch.arange(most)
    found = texts.gather(1, columns.clamp(min=0))
    return found.where(columns > 0, NOTHING)


def matches(text: Tensor, rows: Tensor, places: Tensor, ending: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of the candidates `places` [n] of `rows` [n], in ascending order, each row's `most` with the longest matches.

    `text` [T] int32, with `END` around every piece; a place is that of the last token before the text would go on, which
    equals the row's last one. `ending` [B, W]: see `endings`; no more than W tokens are compared. Among equal matches the later
    places are kept. Returns rows, places and matches [m], by row, the longest match first.
    """
    glance = _agreeing(text, places, ending[:, :GLANCE][rows])
    best = (rows * (GLANCE + 1) - glance).mul_(len(text)).sub_(places).argsort()
    first = torch.searchsorted(rows, rows)  # rows ascend, also when sorted anew
    kept = best[torch.arange(len(best)) - first < most]
    rows, places, glance = rows[kept], places[kept], glance[kept]
    if ending.shape[1] > GLANCE and bool((glance == GLANCE).any()):
        glance = _agreeing(text, places, ending[rows])
    return rows, places, glance


def _agreeing(text: Tensor, places: Tensor, ending: Tensor) -> Tensor:
    """How many tokens up to `places` [n] equal those of `ending` [n, w], the newest first: [n]."""
    columns = places[:, None] - torch.arange(ending.shape[1])
    return (text[columns.clamp(min=0)] == ending).to(torch.uint8).cumprod(1).sum(1)


def following(text: Tensor, places: Tensor, depth: int) -> Tensor:
    """The `depth` tokens behind `places` [n] of `text` [T], `END` from where the piece ends: [n, depth] int32."""
    columns = places[:, None] + torch.arange(1, depth + 1)
    found = text[columns.clamp(max=len(text) - 1)]
    return found.where((found != END).to(torch.uint8).cumprod(1).bool(), END)


def going_round(text: Tensor, places: Tensor, ends: Tensor, matched: Tensor, depth: int) -> Tensor:
    """`following`, for places in the row's own text, whose last token stands at `ends` [n].

    Where the match reaches into its own continuation the text runs in a loop, which goes on.
    """
    known = ends - places
    step = torch.arange(depth)
    loops = (matched >= known)[:, None]
    columns = places[:, None] + 1 + torch.where(loops, step % known[:, None], step)
    return text[columns.clamp(max=len(text) - 1)].where(loops | (step < known[:, None]), END)
