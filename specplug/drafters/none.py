"""`none`: propose nothing. Plain decoding through specplug's cache and attention: the honest baseline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from specplug.drafters.base import Drafter, DraftRequest
from specplug.tree import ROOT_ONLY, TreeBatch, TreeShape, roots_only


@dataclass
class NoDraft(Drafter):
    """Every round verifies the root alone and yields one token."""

    checked: ClassVar[bool] = False

    def shapes(self) -> tuple[TreeShape, ...]:
        return (ROOT_ONLY,)

    def fitted(self, shape: TreeShape) -> TreeShape:
        return ROOT_ONLY

    def draft(self, request: DraftRequest) -> TreeBatch:
        return roots_only(request.batch.roots)
