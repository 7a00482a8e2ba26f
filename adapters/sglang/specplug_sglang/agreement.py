"""Tensor parallelism: every rank must take the same decision, and measured times differ between ranks, so rank 0 plans."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

from specplug.controllers import Controller
from specplug.controllers.base import Plan
from specplug.host import Batch
from specplug.round import Round
from specplug.tree import TreeShape

# What crosses between ranks: the arm's number, the tree's parents and priority, and the rows' sizes where they differ.
Message = tuple[int, tuple[int, ...], tuple[int, ...], tuple[int, ...] | None]
Broadcast = Callable[[Message | None], Message]
"""Sends rank 0's value to every rank and returns it; other ranks pass None."""


class AgreedController(Controller):
    """`inner`'s decisions on rank 0, everywhere.

    Everything after the plan is a function of it and of values that are equal on all ranks: logits are gathered to all,
    and draws depend on the request's seed and position only.
    """

    def __init__(self, inner: Controller, rank: int, broadcast: Broadcast) -> None:
        self.arms = inner.arms
        self._inner, self._rank, self._broadcast = inner, rank, broadcast

    def plan(self, batch: Batch) -> Plan:
        message = None
        if self._rank == 0:
            mine = self._inner.plan(batch)
            message = self.arms.index(mine.arm), mine.shape.parents, mine.shape.priority, mine.sizes
        number, parents, priority, sizes = self._broadcast(message)
        return Plan(self.arms[number], TreeShape(tuple(parents), tuple(priority)), sizes)

    def observe(self, finished: Round) -> None:
        if self._rank == 0:
            self._inner.observe(finished)

    def forget(self, rows: Sequence[Hashable]) -> None:
        if self._rank == 0:
            self._inner.forget(rows)


def broadcast_over(group: Any) -> Broadcast:
    """Over an SGLang group coordinator's CPU group."""
    from sglang.srt.utils import broadcast_pyobj  # noqa: PLC0415  (only servers with more than one rank need it)

    def send(value: Message | None) -> Message:
        sent = broadcast_pyobj([] if value is None else [value], group.rank, group.cpu_group, src=group.ranks[0])
        return sent[0]

    return send
