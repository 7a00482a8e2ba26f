"""Views: in which slot of a store each committed position of a row stands, and where draft nodes are written.

A row's visible slots are `[0, fill)`; its scratch, for nodes that are not committed, starts at `base`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from specplug import UnsupportedError
from specplug.kv_policies import KVPolicy


class FullView:
    """Position p stands in slot p; scratch follows at the row's length."""

    def fills(self, lengths: Sequence[int]) -> list[int]:
        return list(lengths)

    def bases(self, lengths: Sequence[int]) -> list[int]:
        return list(lengths)

    def slots(self, positions: Tensor) -> Tensor:
        """Slot of each position, any shape."""
        return positions

    def positions(self, slots: Tensor, lengths: Tensor) -> Tensor:
        """Position in each of `slots` [T] for rows of `lengths` [B]: [B, T]."""
        return slots.expand(len(lengths), -1)

    def oldest(self, length: int) -> int:
        """First position that must be present beyond the anchors, for a row of `length`."""
        return 0


class RingView:
    """`sink` first positions for good, the last `window` in a ring: position p replaces p - window.

    New positions enter one by one, so keeping the window up to date copies what was committed and not the window.
    Scratch starts behind the ring, at one place for all rows: every shape is fixed.
    """

    def __init__(self, sink: int, window: int, reach: int | None = None) -> None:
        """`reach`: how far before the root the sinks seem to stand at most; None: where they stand."""
        self.sink, self.window, self.reach = sink, window, reach
        self.size = sink + window

    def fills(self, lengths: Sequence[int]) -> list[int]:
        return [min(length, self.size) for length in lengths]

    def bases(self, lengths: Sequence[int]) -> list[int]:
        return [self.size] * len(lengths)

    def slots(self, positions: Tensor) -> Tensor:
        """Slot of each position, any shape."""
        return positions.where(positions < self.sink, self.sink + (positions - self.sink) % self.window)

    def positions(self, slots: Tensor, lengths: Tensor) -> Tensor:
        """Position in each of `slots` [T] for rows of `lengths` [B]: [B, T]; scratch slots get what a ring would hold."""
        last = lengths[:, None] - 1 - self.sink
        offset = slots[None] - self.sink
        newest = last - (last - offset) % self.window
        return slots[None].where(slots[None] < self.sink, self.sink + newest)

    def oldest(self, length: int) -> int:
        """First position that must be present beyond the sinks, for a row of `length`."""
        return max(self.sink, length - self.window)


View = FullView | RingView


def view_of(policy: KVPolicy) -> View:
    """How what `policy` selects is laid out: everything, or first positions and a window.

    What a policy chooses by looking takes the first positions' place (sparse.py). Raises `UnsupportedError` for a selection of
    scattered positions that a policy makes without looking.
    """
    selection = policy.select(torch.zeros(1, dtype=torch.int64))
    if selection is None:
        return FullView()
    anchors = selection.anchors
    sinks = anchors.flatten()
    if anchors.shape[:3] != (1, 1, 1) or not torch.equal(sinks, torch.arange(len(sinks))) or selection.window < 1:
        raise UnsupportedError(
            f"KV policy {type(policy).__name__} selects other positions than the first ones and a recent window, which "
            "the Hugging Face adapter cannot lay out; use 'streaming' or 'full'."
        )
    return RingView(len(sinks), selection.window, selection.reach)
