"""FlashInfer's prefill wrappers: made once, lent to one living plan each, over one workspace a device.

A wrapper holds one plan, in buffers of 8 MiB on the device and 8 MiB on the host: so a plan borrows wrappers, nobody plans
them anew while it lives, and they go back when it is dropped. ``plan`` writes to the wrapper's pinned host buffer, which the
device copies when it gets there: a wrapper is planned anew only once that copy is done. All kernels of a device share one
workspace for partial results, so they must run on one stream, one after another.
"""

from __future__ import annotations

import importlib
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

from specplug_kernels.flashinfer_layout import PackedMask, PageTable
from specplug_kernels.flashinfer_paths import largest_tile
from specplug_kernels.paging import PagedShape

WORKSPACE_BYTES = 128 * 2**20
"""The size that FlashInfer recommends; more where a shape asks for more."""
CTAS_A_PROCESSOR = 2
"""Into how many parts a processor's share is cut at most (scheduler.cuh, PrefillPlan)."""
IDLE_WRAPPERS = 4
"""So many may wait for the device before the host waits for the oldest."""

Family = tuple[torch.device, str, int]
_workspaces: dict[torch.device, torch.Tensor] = {}
_idle: dict[Family, deque[Wrapper]] = {}


@dataclass(slots=True)
class Wrapper:
    """One of FlashInfer's ``BatchPrefillWithPagedKVCacheWrapper`` in NHD layout, and when it may be planned anew."""

    inner: Any
    family: Family
    _copied: torch.cuda.Event | None = field(default=None, init=False)

    def plan(self, queries: int, table: PageTable, mask: PackedMask | None, **arguments: Any) -> None:
        """Plan for ``queries`` queries a row over a page table. ``arguments``: more of FlashInfer's ``plan``, by name.

        The rows of a packed mask begin at bytes, and ``plan`` takes them to begin at bits (0.6.13): with more than one
        row its pointers are wrong. ``custom_mask`` would need its pointers on the device, and ``plan`` would wait for
        them. So the pointers are put right in the wrapper's own buffer behind it.

        Raises:
            RuntimeError: a FlashInfer that keeps no pointers of a mask there.
        """
        self.wait()
        rows = len(table.indptr) - 1
        packed = {} if mask is None else {"packed_custom_mask": mask.bits}
        self.inner.plan(
            qo_indptr=torch.arange(rows + 1, dtype=torch.int32) * queries,
            paged_kv_indptr=table.indptr,
            paged_kv_indices=table.indices,
            paged_kv_last_page_len=table.last_page_len,
            page_size=table.page_size,
            **packed,
            **arguments,
        )
        if mask is not None:
            pointers = getattr(self.inner, "_mask_indptr_buf", None)
            if not isinstance(pointers, torch.Tensor):
                raise RuntimeError(
                    "this FlashInfer keeps its mask pointers elsewhere; versions from 0.6.13 to below 0.8 fit"
                )
            pointers.copy_(mask.indptr)
        if self.family[0].type == "cuda":
            self._copied = torch.cuda.Event()
            self._copied.record(torch.cuda.current_stream(self.family[0]))

    @property
    def is_waiting(self) -> bool:
        """Whether the device has yet to copy the last plan."""
        return self._copied is not None and not self._copied.query()

    def wait(self) -> None:
        if self._copied is not None:
            self._copied.synchronize()


def borrow(device: torch.device, size: int, jit: list[Any] | None) -> Wrapper:
    """An idle wrapper with a workspace of ``size`` bytes or more, or a new one; :func:`give_back` ends it.

    ``jit``: arguments that a kernel of one's own is built with, see :mod:`~specplug_kernels.flashinfer_bitmap`.
    """
    family = device, jit[0] if jit else "", workspace(device, size).numel()
    idle = _idle.setdefault(family, deque())
    if idle and (len(idle) >= IDLE_WRAPPERS or not idle[0].is_waiting):
        return idle.popleft()
    return Wrapper(new_wrapper(workspace(device, size), jit), family)


def give_back(wrappers: Iterable[Wrapper]) -> None:
    """Wrappers that no plan uses any more."""
    for wrapper in wrappers:
        if wrapper.family in _idle:
            _idle[wrapper.family].append(wrapper)


def new_wrapper(buffer: torch.Tensor, jit: list[Any] | None, **graph: Any) -> Any:
    """A wrapper over FA2's kernels: FA3's take no mask and do not split a long row among processors."""
    flashinfer = importlib.import_module("flashinfer")
    return flashinfer.BatchPrefillWithPagedKVCacheWrapper(buffer, "NHD", backend="fa2", jit_args=jit, **graph)


def workspace(device: torch.device, size: int) -> torch.Tensor:
    """The device's workspace, of at least ``size`` bytes. It grows by being replaced; who holds the old one keeps it."""
    if device not in _workspaces or _workspaces[device].numel() < size:
        _workspaces[device] = torch.empty(max(size, WORKSPACE_BYTES), dtype=torch.uint8, device=device)
        for family in [family for family in _idle if family[0] == device]:
            del _idle[family]
    return _workspaces[device]


def workspace_bytes(shape: PagedShape, *, queries: int, rows: int) -> int:
    """The most that partial results of rows split among processors take (scheduler.cuh, PrefillPlan), in bytes.

    ``queries``: of one row; ``rows``: the batch if it is captured in a CUDA graph, which has room for every tile of
    queries, else 0.
    """
    tile = largest_tile(shape.head_dim)
    tiles = -(-queries * shape.groups * rows // tile) + rows
    parts = max(CTAS_A_PROCESSOR * processors(shape.device) // shape.kv_heads, tiles)
    return shape.query_heads * parts * tile * (shape.head_dim + 1) * 4 + 2**20


def concrete(device: torch.device) -> torch.device:
    """``cuda`` as the device that it now means."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def processors(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
