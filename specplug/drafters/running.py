"""What the drafters share that forward a model, or the target itself, over what a KV policy lets them read of a cache."""

from __future__ import annotations

from typing import ClassVar

from specplug.drafters.base import Drafter, DraftRequest
from specplug.drafters.expand import expand
from specplug.host import Batch, DraftRunner
from specplug.kv_policies import KVPolicy
from specplug.needs import Need
from specplug.tree import TreeBatch


class RunningDraft(Drafter):
    """Base of drafters with a runner, which `setup` makes. `stop`: see `expand`."""

    kv_policy: KVPolicy
    stop: float = 0.0
    checked: ClassVar[bool] = False
    drafts_with_model: ClassVar[bool] = True
    _runner: DraftRunner

    @property
    def required(self) -> frozenset[Need]:
        return self.needs | self.kv_policy.needs

    @property
    def budget(self) -> int | None:
        return self.kv_policy.budget

    def unread(self, batch: Batch) -> int:
        return self._runner.unread(batch)

    def draft(self, request: DraftRequest) -> TreeBatch:
        return expand(self.host, self._runner, request, self.stop)
