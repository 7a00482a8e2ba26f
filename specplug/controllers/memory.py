"""What controllers remember between generations: how long rounds take, what was accepted, and what trying may cost."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from specplug.acceptance import DEPTHS, RANKS, Acceptance
from specplug.controllers.purse import Purse
from specplug.controllers.thinking import Thinking
from specplug.cost.calibrated import Calibrated, Drafting, Prior
from specplug.cost.guess import TOKEN_SHARE, WEIGHTS, Guess
from specplug.cost.online import OnlineCost
from specplug.cost.profile import Profile, Seen
from specplug.host import Host
from specplug.needs import Need

if TYPE_CHECKING:
    from specplug.controllers.base import Arm

MODEL_SHARE = 0.2  # of the target's time that a smaller model's forward is guessed to take
MOST_TRIALS = 64.0  # trials that a profile's acceptance is worth at most: they fade as a generation's own do
ALIKE = 8  # rounds of the same text that say as much as one of another


@dataclass(slots=True)
class Learnt:
    """What is known of one host: a model on a device, sampled or greedy alike."""

    cost: OnlineCost
    purse: Purse = field(default_factory=Purse)
    thinking: Thinking = field(default_factory=Thinking)
    rehearsing: Thinking = field(default_factory=Thinking)
    acceptance: dict[Hashable, Acceptance] = field(default_factory=dict)
    # by arm: seconds a token that its draft takes to read what it has missed, and those beyond its usual of its first round in a generation
    reading: dict[str, float] = field(default_factory=dict)
    warming: dict[str, float] = field(default_factory=dict)
    rounds: Counter[Hashable] = field(default_factory=Counter)  # by situation
    # the situation's round when an arm was last run, or rehearsed
    tried: dict[tuple[Hashable, str], int] = field(default_factory=dict)

    def tick(self, situation: Hashable, label: str) -> None:
        """A round of the arm `label` has been run."""
        self.rounds[situation] += 1
        self.look(situation, label)

    def look(self, situation: Hashable, label: str) -> None:
        """What the arm `label` is worth was seen just now."""
        self.tried[situation, label] = self.rounds[situation]

    def waited(self, situation: Hashable, label: str) -> int:
        """Rounds since the arm `label` was last looked at."""
        return self.rounds[situation] - self.tried.get((situation, label), 0)


class Memory:
    """`Learnt` by host. Shared by the generations of one Speculator, also from several threads.

    Two threads may overwrite each other's newest measurement; nothing worse. `profile`: what was measured beforehand.
    """

    def __init__(self, profile: Profile | None = None) -> None:
        self.profile = profile
        self._learnt: dict[Hashable, Learnt] = {}
        self._lock = threading.Lock()

    def of(self, host: Host, arms: Sequence[Arm]) -> Learnt:
        """What is known of `host`; at first what the profile says, or a guess at how its times depend on what `arms` do."""
        with self._lock:
            learnt = self._learnt.get(host.key)
            if learnt is None:
                cost = OnlineCost(guess(host, arms)) if self.profile is None else calibrated(self.profile, arms)
                learnt = self._learnt[host.key] = Learnt(cost)
            if self.profile is not None:
                for key, seen in believed(self.profile, arms).items():
                    learnt.acceptance.setdefault(key, start(seen))
            return learnt


def calibrated(profile: Profile, arms: Sequence[Arm]) -> Calibrated:
    """Times of `profile` for the drafters of `arms`."""
    drafts = {}
    for arm in arms:
        part = arm.drafter.key if arm.drafter.key in profile.cost.coefficients else None
        drafts[arm.label] = Drafting(part, arm.drafter.budget, _share(arm))
    return Calibrated(Prior(profile.cost, drafts))


def believed(profile: Profile, arms: Sequence[Arm]) -> dict[tuple[str, bool], Seen]:
    """What `profile` saw of the drafters of `arms`: by label and whether sampled."""
    found = {}
    for arm in arms:
        for law, seen in profile.acceptance.get(arm.drafter.key, {}).items():
            found[arm.label, law == "sampled"] = seen
    return found


def start(seen: Seen) -> Acceptance:
    """Acceptance as if `seen` had just been observed, in at most `MOST_TRIALS` trials."""
    trials, first = min(MOST_TRIALS, seen.trials / ALIKE), seen.ranks[0]
    depths = [*seen.depths[:DEPTHS]] or [first]
    depths += [depths[-1]] * (DEPTHS - len(depths))
    made = Acceptance(prior=first, proposing=seen.proposing)
    for depth, chance in enumerate(depths):
        reached = trials if depth == 0 else made.taken[depth - 1]
        made.tried[depth], made.taken[depth] = reached, reached * chance
    for k, chance in enumerate(seen.ranks[1 : RANKS + 1]):
        made.missed[k], made.later[k] = trials * (1 - first), trials * chance
    return made


def guess(host: Host, arms: Sequence[Arm]) -> Guess:
    """How times may depend on the load, from what little a host says of itself."""
    device = getattr(getattr(host, "device", None), "type", "cpu")
    return Guess(
        weight_bytes=getattr(host, "weight_bytes", 0) or WEIGHTS,
        kv_bytes=getattr(host, "kv_bytes", 0),
        token_share=TOKEN_SHARE.get(device, TOKEN_SHARE["cuda"]),
        drafts={arm.label: _share(arm) for arm in arms if arm.drafter.drafts_with_model},
    )


def _share(arm: Arm) -> float:
    """The target drafting for itself moves all of its weights; what it reads of the cache is counted apart."""
    return 1.0 if Need.TARGET_RUNNER in arm.drafter.needs else MODEL_SHARE
