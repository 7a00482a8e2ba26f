"""What a draft would have to read before it can draft, a prompt at first, and whether that can pay."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from specplug.controllers.base import Arm
from specplug.host import Batch

LITTLE = 16  # tokens a row that a draft may have missed without anybody counting: more make a round no ordinary one
LEAST = 0.25  # of what a draft took that was for reading: what its forwards take was a guess, perhaps
GUESS = 50  # a draft reads a token in so small a part of a decode step's share of a row, before it was measured


@dataclass(slots=True)
class Reading:
    """`known`: by arm, seconds a token that its draft takes to read, beside the forward that reads them; outlives a generation.

    `stake`: share of the time that plain decoding would still take that a draft may spend on reading.
    """

    known: dict[str, float]
    stake: float
    _begun: int = 0  # tokens that the round which was planned last makes a draft read

    def seconds(self, arm: Arm, batch: Batch, plain: float, forward: Callable[[Arm], float]) -> float | None:
        """What reading will take before `arm` can draft; None: more than may be staked.

        `plain`: seconds of a plain round; `forward`: of a forward of the draft that reads next to nothing.
        """
        unread = self._much(arm, batch)
        if not unread:
            return 0.0
        needed = forward(arm) + unread * self.known.get(arm.label, plain / batch.num_rows / GUESS)
        return needed if needed <= self.stake * batch.room * plain else None

    def begin(self, arm: Arm, batch: Batch) -> None:
        """`arm` is about to draft."""
        self._begun = self._much(arm, batch)

    def end(self) -> int:
        """Tokens that the round which was begun made its draft read: much, or 0."""
        begun, self._begun = self._begun, 0
        return begun

    def learn(self, arm: Arm, unread: int, seconds: float, forward: float, levels: int) -> None:
        """`arm` drafted `levels` for so long, with so many tokens `unread`; `forward`: seconds of a forward that reads next to nothing."""
        # short texts take their forward, and little more: what they take a token says nothing of long ones
        self.known[arm.label] = max(LEAST * seconds, seconds - (levels + 1) * forward) / unread

    def _much(self, arm: Arm, batch: Batch) -> int:
        """What the draft of `arm` has to read; 0 if that is little."""
        unread = arm.drafter.unread(batch)
        return unread if unread > LITTLE * batch.num_rows else 0
