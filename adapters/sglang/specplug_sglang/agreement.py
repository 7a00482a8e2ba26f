"""Tensor parallelism: every rank must take the same decision, and measured times differ between ranks, so rank 0 plans."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from specplug.controllers import Controller
from specplug.controllers.base import Plan
from specplug.host import Batch
from specplug.round import Round

Broadcast = Callable[[tuple[int, int] | None], tuple[int, int]]
"""Sends rank 0's value to every rank and returns it; other ranks pass None."""


class AgreedController(Controller):
    """`inner`'s decisions on rank 0, everywhere. What crosses is the arm's number and the depth its tree is cut to.

    Everything after the plan is a function of it and of values that are equal on all ranks: logits are gathered to all,
    and draws depend on the request's seed and position only.
    """

    def __init__(self, inner: Controller, rank: int, broadcast: Broadcast) -> None:
        self.arms = inner.arms
        self._inner, self._rank, self._broadcast = inner, rank, broadcast

    def plan(self, batch: Batch) -> Plan:
        mine = self._inner.plan(batch) if self._rank == 0 else None
        number, depth = self._broadcast(None if mine is None else (self.arms.index(mine.arm), mine.shape.depth))
        arm = self.arms[number]
        return Plan(arm, arm.shape.cut(depth))

    def observe(self, finished: Round) -> None:
        if self._rank == 0:
            self._inner.observe(finished)


def broadcast_over(group: Any) -> Broadcast:
    """Over an SGLang group coordinator's CPU group."""
    from sglang.srt.utils import broadcast_pyobj  # noqa: PLC0415  (only servers with more than one rank need it)

    def send(value: tuple[int, int] | None) -> tuple[int, int]:
        sent = broadcast_pyobj([] if value is None else [value], group.rank, group.cpu_group, src=group.ranks[0])
        return sent[0]

    return send
