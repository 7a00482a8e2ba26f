"""A look into a scheduler between two rounds."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from torch import Tensor

from specplug import Batch
from specplug_sglang.host import SGLangHost
from specplug_sglang.requests import tokens_of
from specplug_sglang.view import NodeView


class SGLangState:
    """Requests that are running, by row of the world's request, and their slots in the token pool."""

    def __init__(self, host: SGLangHost, batch: Batch, running: dict[int, Any]) -> None:
        """`batch`: of the round that has ended; `running`: SGLang's record of each row that has not ended."""
        self.host, self.batch, self.running = host, batch, running

    def committed(self) -> dict[Hashable, list[int]]:
        return {row: tokens_of(req) for row, req in self.running.items()}

    def cached(self, row: Hashable) -> list[Tensor]:
        req = self.running[row]  # type: ignore[index]
        slots = self.host.pool.req_to_token[req.kv.req_pool_idx, : len(tokens_of(req)) - 1].long()
        pool = self.host.target.model_runner.token_to_kv_pool
        layers = range(pool.layer_num)
        return [
            part(layer)[slots].flatten(1) for layer in layers for part in (pool.get_key_buffer, pool.get_value_buffer)
        ]

    def draft_reads(self, row: Hashable) -> int | None:
        if row not in self.batch.rows:
            return None
        place = self.batch.rows.index(row)
        views = [runner.last_view for runner in self.host.runners if runner.last_view is not None]
        return max((_committed(view, place, int(self.batch.lengths[place])) for view in views), default=None)


def _committed(view: NodeView, place: int, length: int) -> int:
    """Most positions below `length` that a query of row `place` saw."""
    before = view.visible[place] & (view.key_positions[place] < length)
    return int(before.sum(1).max())
