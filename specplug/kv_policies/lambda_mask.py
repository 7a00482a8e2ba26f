"""`lambda`: first positions and a recent window, the first never further away than the model can tell (LM-Infinite, arXiv 2308.16137)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from specplug.errors import OptionError
from specplug.kv_policies.base import KVPolicy, KVSelection, first_positions
from specplug.needs import Need


@dataclass(frozen=True, slots=True)
class Lambda(KVPolicy):
    """The first `sink` and the last `window` committed positions, the first read at most `reach` positions before the root.

    A Lambda-shaped mask (few starting tokens, many recent ones) and a limit to distances, so that a
    draft meets none that it was not trained on, however long the text. `streaming` reads the same positions where they
    stand; the two differ once the text is longer than `reach`. None: as far as the window (in the
    paper both are the length that the model was trained on).
    """

    sink: int = 4
    window: int = 508
    reach: int | None = None
    needs: ClassVar[frozenset[Need]] = frozenset({Need.DISTANCES})

    def __post_init__(self) -> None:
        if self.window < 1:
            raise OptionError(
                f"lambda: window={self.window} must be at least 1, or the draft forgets the newest token."
            )
        if self.sink < 1:
            raise OptionError(
                f"lambda: sink={self.sink} must be at least 1; without first positions it is 'streaming:sink=0'."
            )
        if self.reach is not None and (not isinstance(self.reach, int) or self.reach < 1):
            raise OptionError(f"lambda: reach={self.reach!r} must be a whole number of positions, at least 1.")

    @property
    def budget(self) -> int:
        return self.sink + self.window

    def select(self, lengths: Tensor) -> KVSelection:
        reach = self.window if self.reach is None else self.reach
        return KVSelection(first_positions(self.sink, lengths.device), self.window, reach)
