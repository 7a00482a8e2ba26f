"""What is believed of the arms' acceptance: what was seen of each, and a part of what was seen of its kin."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from specplug.acceptance import Acceptance
from specplug.controllers.base import Arm
from specplug.host import Batch
from specplug.outcome import Outcome
from specplug.tree import child_counts

SHARED = 0.3  # what a trial of others says of a row that nothing was seen of
KINSHIP = 0.5  # what a trial of an arm's kin says of it
MOST = 8.0  # trials of its own that its kin can stand for


class Beliefs:
    """`known`: by label and whether sampled; outlives a generation.

    Kin draft in the same way and read more or less of the cache: one of them is tried first, and what becomes of it says
    much of the others, so that every further budget costs less to find out about.
    """

    def __init__(self, known: dict[Hashable, Acceptance], arms: Sequence[Arm]) -> None:
        self._known = known
        self._followed: str | None = None  # the arm that has gone on with the texts
        self._kin = {arm.label: [other for other in arms if _related(arm, other)] for arm in arms}

    def of(self, arm: Arm, sampling: bool) -> Acceptance:
        """What was seen of `arm`; of an arm that nothing was seen of, its kin's rate is believed."""
        seen = self._known.get((arm.label, sampling))
        if seen is None:
            seen = self._known.setdefault((arm.label, sampling), Acceptance())
        if not seen.samples and (kin := self._nearest(arm, sampling)) is not None and kin.samples:
            seen.prior, seen.weight = kin.first()[0], max(seen.weight, min(MOST, KINSHIP * kin.samples))
        return seen

    def trials(self, arm: Arm, sampling: bool) -> float:
        """How many rows and rounds speak of `arm`, its kin's included."""
        kin = self._nearest(arm, sampling)
        return self.of(arm, sampling).samples + (min(MOST, KINSHIP * kin.samples) if kin is not None else 0.0)

    def known_of(self, arm: Arm, batch: Batch) -> float:
        """How many trials speak of `arm` for the rows of `batch`: fewer for rows that nothing was seen of, as many as young rows gave
        at least."""
        trials, familiar = self.trials(arm, batch.sampling), self.familiar(arm, batch)
        young = self.of(arm, batch.sampling).rows.tried
        return familiar * trials + (1 - familiar) * max(SHARED * trials, min(trials, young))

    def familiar(self, arm: Arm, batch: Batch) -> float:
        """The share of the rows of `batch` that anything was seen of with `arm`."""
        return self.of(arm, batch.sampling).rows.familiar(batch.rows)

    def in_streaks(self, arm: Arm, batch: Batch) -> bool:
        """Whether all rows are in a streak of `arm`."""
        return self.of(arm, batch.sampling).streaks.hold(batch.rows)

    def follow(self, outcome: Outcome) -> None:
        """Which rows are in a streak after this round. Whatever other arms were in the middle of: this one has gone on."""
        arm = outcome.plan.arm
        if arm.label != self._followed:
            self._followed, own = arm.label, ((arm.label, False), (arm.label, True))
            for key, seen in self._known.items():
                if key not in own:
                    seen.streaks.end()
        if arm.shape.is_chain and outcome.plan.shape.size:
            seen = self.of(arm, outcome.sampling)
            seen.streaks.observe(outcome, seen.fading)

    def forget(self, rows: Sequence[Hashable]) -> None:
        """These rows have left."""
        for seen in self._known.values():
            seen.forget(rows)

    def _nearest(self, arm: Arm, sampling: bool) -> Acceptance | None:
        """The kin that most was seen of."""
        found = [
            self._known[kin.label, sampling] for kin in self._kin[arm.label] if (kin.label, sampling) in self._known
        ]
        return max(found, key=lambda seen: seen.samples, default=None)


def _related(arm: Arm, other: Arm) -> bool:
    """Whether both draft alike over caches of different size."""
    alike = type(arm.drafter) is type(other.drafter) and getattr(arm.drafter, "model", None) is getattr(
        other.drafter, "model", None
    )
    return alike and arm.drafter.budget != other.drafter.budget


def later_of(arm: Arm, seen: Acceptance) -> list[float]:
    """Shares of the later children, for nodes with no more children than the arm's own tree: a vocabulary may be small."""
    if arm.shape.is_chain:
        return []
    return seen.others()[: max(child_counts(arm.shape)) - 1]
