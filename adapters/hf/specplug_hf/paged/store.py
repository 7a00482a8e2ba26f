"""A store that paged kernels read: every row owns a region of pages, token after token; whoever leaves moves nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from specplug_hf.store import KVStore, LayerKV
from specplug_hf.views import View
from specplug_kernels import commit_paged_kv

if TYPE_CHECKING:
    from specplug_hf.paged.step import PagedStep

PAGE = 64  # slots of a page: what a kernel looks up at once


class PagedStore(KVStore):
    """Memory [regions, capacity, H, D] a layer. The batch's row b lives in region `regions[b]`.

    The same memory has pages of any size that divides the capacity: a whole text is read in pages of `PAGE`, a sparse
    selection of it in pages of one slot, and neither is copied for it. `kernel`: what reads it (`plan_paged_attention`).
    """

    def __init__(self, prompt: Sequence[LayerKV], capacity: int, kernel: str) -> None:
        self.kernel = kernel
        self.stamp = 0  # another one whenever memory or rows have moved
        self.regions = list(range(prompt[0][0].shape[0]))
        super().__init__(prompt, _whole_pages(capacity))

    def _zeros(self, like: Tensor, shape: tuple[int, ...]) -> Tensor:
        layers, rows, heads, capacity, dim = shape
        return like.new_zeros((layers, rows, capacity, heads, dim)).transpose(2, 3)

    def _refresh(self) -> None:
        super()._refresh()
        self._moved()
        self._pools = [
            (keys.transpose(1, 2).flatten(0, 1), values.transpose(1, 2).flatten(0, 1))
            for keys, values in zip(self.keys, self.values, strict=True)
        ]

    @property
    def recorded_kernel(self) -> str:
        """What reads it in a forward that is recorded: FlashInfer plans every forward anew on the host."""
        return "torch" if self.kernel == "torch" else "triton"

    def expect(self, slots: int) -> None:
        super().expect(_whole_pages(slots))

    def reserve(self, slots: int) -> None:
        super().reserve(_whole_pages(slots))

    def row(self, place: int) -> list[LayerKV]:
        return super().row(self.regions[place])

    def _rows(self, device: torch.device) -> Tensor:
        return torch.tensor(self.regions, device=device)

    def columns(self, layer: int, width: int) -> LayerKV:
        """See `KVStore.columns`; a copy if a row has left before another."""
        keys, values = super().columns(layer, width)
        rows = len(self.regions)
        if self.regions == list(range(rows)):
            return keys[:rows], values[:rows]
        regions = self._rows(keys.device)
        return keys[regions], values[regions]

    def _moved(self) -> None:
        self.stamp += 1
        self._first: dict[torch.device, Tensor] = {}
        self._pages: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def first_slots(self, device: torch.device) -> Tensor:
        """Where each row's region begins, counted in slots of all regions: [B] int64."""
        if device not in self._first:
            self._first[device] = torch.tensor([region * self.capacity for region in self.regions], device=device)
        return self._first[device]

    def pages(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Where each row's pages begin in a list of pages [B + 1], and that list, int32."""
        if device not in self._pages:
            each, regions = self.capacity // PAGE, torch.tensor(self.regions, dtype=torch.int32)
            indptr = torch.arange(len(regions) + 1, dtype=torch.int32) * each
            pages = (regions[:, None] * each + torch.arange(each, dtype=torch.int32)).flatten()
            self._pages[device] = indptr.to(device), pages.to(device)
        return self._pages[device]

    def step(self, view: View, lengths: list[int], *nodes: Any, **layout: Any) -> PagedStep:  # type: ignore[override]
        from specplug_hf.paged.step import PagedStep  # noqa: PLC0415  (steps know stores)

        return PagedStep(self, lengths, *nodes, **layout)

    def write(self, layer: int, keys: Tensor, values: Tensor, step: PagedStep) -> LayerKV:  # type: ignore[override]
        """See `KVStore.write`; what attention reads are pages [pages, page, H, D]."""
        slots = step.write_on(keys.device).flatten()
        pools = self._pools[layer]
        for pool, new in zip(pools, (keys, values), strict=True):
            pool.index_copy_(0, slots, new.transpose(1, 2).flatten(0, 1).to(pool.dtype))
        return pools[0].unflatten(0, (-1, step.page)), pools[1].unflatten(0, (-1, step.page))

    def move(self, source: Tensor, target: Tensor) -> None:
        first = self.first_slots(source.device)[:, None]
        by_device: dict[torch.device, list[Tensor]] = {}
        for pool in (pool for pair in self._pools for pool in pair if pool.shape[1]):
            by_device.setdefault(pool.device, []).append(pool)
        for device, pools in by_device.items():
            commit_paged_kv(pools, (source + first).to(device), (target + first).to(device))

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Only the batch rows `rows` stay, in this order; nothing is moved."""
        self.regions = [self.regions[row] for row in rows]
        self._moved()


def _whole_pages(slots: int) -> int:
    return -(-slots // PAGE) * PAGE
