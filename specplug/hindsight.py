"""What drafting some tokens ago would have come to, in numbers: the text since is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Hindsight(NamedTuple):
    """By place of a text: how many proposed tokens it went on with, and whether any were proposed.

    `ranks`: which child of its parent each of those tokens was; None: the first.
    """

    taken: Sequence[int]
    proposed: Sequence[bool]
    ranks: Sequence[Sequence[int]] | None = None
