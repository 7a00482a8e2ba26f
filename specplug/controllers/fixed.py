"""`fixed`: does what it is told, always."""

from __future__ import annotations

from dataclasses import dataclass

from specplug.controllers.base import Controller, Plan, planned
from specplug.host import Batch


@dataclass
class Fixed(Controller):
    """Always the first arm: the drafter and the tree that were asked for."""

    def plan(self, batch: Batch) -> Plan:
        return planned(self.arms[0], batch)
