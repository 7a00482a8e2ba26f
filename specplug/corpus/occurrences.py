"""Where the end of a row's text stands elsewhere too, and what goes on behind it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice
from typing import NamedTuple

from specplug.corpus.text import END

CHUNK = 8  # tokens that are compared at a time
NEAR = 5  # an occurrence that matches so many tokens less than the row's longest does not count


class Occurrence(NamedTuple):
    """A place where a row's text goes on.

    `matched` >= 1: tokens before the place that equal the row's last ones. `follows`: the tokens from the place on, fewer than were
    asked for where the text ends.
    """

    matched: int
    follows: Sequence[int]


def agreeing(text: Sequence[int], place: int, ending: Sequence[int], most: int) -> int:
    """How many tokens of `text` up to `place`, itself included, equal the last ones of `ending`: at most `most`. Both are lists."""
    last = len(ending) - 1
    most = min(most, place + 1, last + 1)
    count = 0
    while count + CHUNK <= most:
        mine, other = place - count + 1, last - count + 1
        if text[mine - CHUNK : mine] != ending[other - CHUNK : other]:
            break
        count += CHUNK
    while count < most and text[place - count] == ending[last - count]:
        count += 1
    return count


def following(text: Sequence[int], place: int, depth: int) -> Sequence[int]:
    """The `depth` tokens behind `place`, up to where the piece ends."""
    found = text[place + 1 : place + 1 + depth]
    return found[: found.index(END)] if END in found else found


def going_round(text: Sequence[int], place: int, matched: int, depth: int) -> Sequence[int]:
    """`following`, for a place in the row's own text, of which `matched` tokens equal its last ones.

    Where the match reaches into its own continuation the text runs in a loop, which goes on.
    """
    known = len(text) - 1 - place
    if matched < known or known >= depth:
        return text[place + 1 : place + 1 + depth]
    return list(islice(cycle(text[place + 1 :]), depth))
