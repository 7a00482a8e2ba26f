"""A look into a `generate` call between two rounds."""

from __future__ import annotations

from collections.abc import Hashable

from torch import Tensor

from specplug_conformance.llama.world import by_token
from specplug_hf.host import HFHost


class HFState:
    """What the host holds for the rows in the batch."""

    def __init__(self, host: HFHost) -> None:
        self.host = host

    def committed(self) -> dict[Hashable, list[int]]:
        if self.host.progress.done:
            return {}
        bounds = zip(self.host.rows, *self.host.history_bounds(), strict=True)
        return {row: self.host.progress.ids[row, start:end].tolist() for row, start, end in bounds}

    def cached(self, row: Hashable) -> list[Tensor]:
        place = self.host.rows.index(row)  # type: ignore[arg-type]
        length = self.host.lengths[place]
        return [by_token(part[:, :length]) for layer in self.host.store.row(place) for part in layer]

    def draft_reads(self, row: Hashable) -> int | None:
        return None
