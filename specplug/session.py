"""One generation's working state: opened drafters, controller, statistics."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from specplug.controllers.base import Arm, Controller
from specplug.controllers.memory import Memory
from specplug.host import Host
from specplug.needs import Need
from specplug.plugins import round_listeners
from specplug.round import Round
from specplug.stats import SpecStats
from specplug.trace.recorder import new_recorder


class Session:
    """Made by `Speculator.open(host)`; used by one thread. `arms` are already opened on `host`."""

    def __init__(self, host: Host, arms: Sequence[Arm], controller: Controller, memory: Memory) -> None:
        self.host = host
        self.stats = SpecStats()
        self.arms = tuple(arms)
        self.recorder = new_recorder(host, arms, controller)  # None unless somebody records
        self.controller = controller.open(arms, host, memory)
        self._drafters = list({id(arm.drafter): arm.drafter for arm in arms}.values())
        self._listeners = round_listeners()
        self.keeps_logits = self.recorder is not None or any(
            Need.TARGET_PASS in drafter.required for drafter in self._drafters
        )

    def observe(self, finished: Round) -> None:
        """Tell statistics, controller, drafters and whoever listens or records what became of a round; may come a round late."""
        self.stats.observe(finished, self.host.kv_bytes)
        self.controller.observe(finished)
        for drafter in self._drafters:
            drafter.observe(finished)
        if finished.commit.finished:
            self.forget(finished.commit.finished)
        if self._listeners is not None:
            self._listeners(event=finished)
        if self.recorder is not None:
            self.recorder.observe(finished)

    def forget(self, rows: Sequence[Hashable]) -> None:
        """These rows have left for good."""
        self.controller.forget(rows)
        for drafter in self._drafters:
            drafter.forget(rows)
