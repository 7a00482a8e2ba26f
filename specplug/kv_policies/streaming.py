"""`streaming`: attention sinks and a recent window (StreamingLLM, arXiv 2309.17453; MagicDec, arXiv 2408.11049)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from specplug.errors import OptionError
from specplug.kv_policies.base import KVPolicy, KVSelection, first_positions


@dataclass(frozen=True, slots=True)
class Streaming(KVPolicy):
    """The first `sink` and the last `window` committed positions, read at their original positions."""

    sink: int = 4
    window: int = 508

    def __post_init__(self) -> None:
        if self.window < 1:
            raise OptionError(
                f"streaming: window={self.window} must be at least 1, or the draft forgets the newest token."
            )
        if self.sink < 0:
            raise OptionError(f"streaming: sink={self.sink} must not be negative; use sink=0 for none.")

    @classmethod
    def within(cls, budget: int) -> Streaming:
        """`budget` positions in all: what the usual sink leaves of them is the window."""
        return cls(window=budget - cls().sink)

    @property
    def budget(self) -> int:
        return self.sink + self.window

    def select(self, lengths: Tensor) -> KVSelection:
        return KVSelection(first_positions(self.sink, lengths.device), self.window)
