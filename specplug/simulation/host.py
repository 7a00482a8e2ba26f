"""What a controller meets instead of a framework: a host and a drafter that say of themselves what a real one says.

Neither knows the world: a controller that holds them cannot reach a true time or what would have been accepted.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from specplug.drafters.base import Drafter, DraftRequest
from specplug.host import Batch, Commit, DraftRunner, SkippedLayers
from specplug.kv_policies.base import KVPolicy
from specplug.needs import Need
from specplug.simulation.world import Ledger
from specplug.tree import TreeBatch
from specplug.verify import Targets, Verdict


@dataclass
class SimulatedHost:
    """`padded`: whether rows of unequal trees are all computed at the largest one's size. `Host`, as far as rounds need it.

    `weight_bytes`, `kv_bytes`: of the target, for a controller's first guess; 0: it says nothing.
    """

    key: Hashable
    weight_bytes: float = 0.0
    kv_bytes: int = 0
    padded: bool = False
    vocab_size: int = 2**15
    device: torch.device = field(default_factory=lambda: torch.device("cuda"))  # a name: nothing is put there
    capabilities: frozenset[Need] = frozenset(Need)
    identity: tuple[str, str, str] = ("simulated", "simulated", "simulated")

    def padded_tokens(self, sizes: Sequence[int]) -> int:
        """Tokens that a verify of rows with `sizes` nodes computes."""
        return len(sizes) * max(sizes) if self.padded else sum(sizes)

    def clock(self) -> float:
        """Seconds, by which a controller's own work is measured: real ones would make the outcome depend on this machine."""
        return 0.0

    def _never(self) -> AssertionError:
        return AssertionError("a simulated host runs no model")

    def batch(self) -> Batch:
        raise self._never()

    def runner(self, model: Any | None, policy: KVPolicy, skipped: SkippedLayers | None = None) -> DraftRunner:
        raise self._never()

    def verify(self, batch: Batch, trees: TreeBatch) -> Tensor:
        raise self._never()

    def distributions(self, batch: Batch, logits: Tensor, trees: TreeBatch) -> Targets:
        raise self._never()

    def draft_law(self, batch: Batch, logits: Tensor) -> Tensor:
        raise self._never()

    def commit(self, batch: Batch, trees: TreeBatch, verdict: Verdict) -> Commit:
        raise self._never()


@dataclass
class Lookup(Drafter):
    """Stands for a drafter that runs no model and always has something to propose."""

    checked: ClassVar[bool] = False

    def draft(self, request: DraftRequest) -> TreeBatch:
        raise AssertionError("a simulated drafter drafts nothing")


@dataclass
class Draft(Lookup):
    """Stands for a draft that runs a model: each level of its tree is a forward."""

    ledger: Ledger = field(default_factory=Ledger)
    drafts_with_model: ClassVar[bool] = True

    def unread(self, batch: Batch) -> int:
        return sum(self.ledger.unread(batch.rows))


@dataclass
class SelfSpeculation(Draft):
    """Stands for the target that drafts for itself: what it has read is there."""

    def unread(self, batch: Batch) -> int:
        return 0
