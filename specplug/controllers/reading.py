"""What a draft would have to read before it can draft, a prompt at first, and whether that can pay."""

from __future__ import annotations

from dataclasses import dataclass, field

from specplug.controllers.base import Arm
from specplug.host import Batch

LITTLE = 64  # tokens a row that a draft may have missed without anybody counting
GUESS = 50  # a draft reads a token in so small a part of a decode step's share of a row, before it was measured


@dataclass(slots=True)
class Reading:
    """`known`: by arm, seconds a token that its draft takes to read; outlives a generation.

    `stake`: share of the time that plain decoding would still take that a draft may spend on reading.
    """

    known: dict[str, float]
    stake: float
    _unread: dict[str, int] = field(default_factory=dict)  # by arm, as of the last plan

    def seconds(self, arm: Arm, batch: Batch, plain: float) -> float | None:
        """What reading will take before `arm` can draft; None: more than may be staked. `plain`: seconds of a plain round."""
        unread = arm.drafter.unread(batch)
        if unread <= LITTLE * batch.num_rows:
            return 0.0
        needed = unread * self.known.get(arm.label, plain / batch.num_rows / GUESS)
        if needed > self.stake * batch.room * plain:
            return None
        self._unread[arm.label] = unread
        return needed

    def observe(self, arm: Arm, seconds: float) -> bool:
        """`arm` drafted for so long. Whether it had much to read: such a round's time is no round's otherwise."""
        unread = self._unread.get(arm.label, 0)
        self._unread.clear()
        if unread:
            self.known[arm.label] = seconds / unread
        return bool(unread)
