"""What controllers remember between generations: how long rounds take, what was accepted, and what trying may cost."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from specplug.acceptance import Acceptance
from specplug.controllers.purse import Purse
from specplug.cost.guess import TOKEN_SHARE, WEIGHTS, Guess
from specplug.cost.online import OnlineCost
from specplug.host import Host

if TYPE_CHECKING:
    from specplug.controllers.base import Arm

MODEL_SHARE = 0.2  # of the target's time that a draft's forward is guessed to take


@dataclass(slots=True)
class Learnt:
    """What is known of one host: a model on a device, sampled or greedy alike."""

    cost: OnlineCost
    purse: Purse = field(default_factory=Purse)
    acceptance: dict[Hashable, Acceptance] = field(default_factory=dict)
    reading: dict[str, float] = field(
        default_factory=dict
    )  # seconds a token that a draft takes to read what it has missed
    rounds: Counter[Hashable] = field(default_factory=Counter)  # by situation
    tried: dict[tuple[Hashable, str], int] = field(
        default_factory=dict
    )  # the situation's round when an arm was last run

    def tick(self, situation: Hashable, label: str) -> None:
        """A round of the arm `label` has been run."""
        self.rounds[situation] += 1
        self.tried[situation, label] = self.rounds[situation]

    def waited(self, situation: Hashable, label: str) -> int:
        """Rounds since the arm `label` was last run."""
        return self.rounds[situation] - self.tried.get((situation, label), 0)


class Memory:
    """`Learnt` by host. Shared by the generations of one Speculator, also from several threads.

    Two threads may overwrite each other's newest measurement; nothing worse.
    """

    def __init__(self) -> None:
        self._learnt: dict[Hashable, Learnt] = {}
        self._lock = threading.Lock()

    def of(self, host: Host, arms: Sequence[Arm]) -> Learnt:
        """What is known of `host`; at first nothing but a guess at how its times depend on what `arms` do."""
        with self._lock:
            return self._learnt.setdefault(host.key, Learnt(OnlineCost(guess(host, arms))))


def guess(host: Host, arms: Sequence[Arm]) -> Guess:
    """How times may depend on the load, from what little a host says of itself."""
    device = getattr(getattr(host, "device", None), "type", "cpu")
    return Guess(
        weight_bytes=getattr(host, "weight_bytes", 0) or WEIGHTS,
        kv_bytes=getattr(host, "kv_bytes", 0),
        token_share=TOKEN_SHARE.get(device, TOKEN_SHARE["cuda"]),
        drafts={arm.label: MODEL_SHARE for arm in arms if arm.drafter.drafts_with_model},
    )
