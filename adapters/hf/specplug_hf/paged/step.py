"""One forward of tree nodes over a paged store: where their keys and values go, and what each node reads."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from specplug import UnsupportedError
from specplug.tree import TreeShape
from specplug_hf.paged.store import PAGE, PagedStore
from specplug_hf.views import RingView
from specplug_kernels import PagedAttention, PagedRows, ScoreRule, paged_rows, plan_paged_attention


class PagedStep:
    """What `Step` is for a store of rows, for nodes `[start, stop)` whose tree stands in the slots behind each row's length.

    `selection`: of the committed positions only its sinks and its window are read, through a page table; nothing is copied.
    A layer with a sliding window of its own counts a sink as near as it stands in that table: a draft may see more than the
    layer would, and never less.
    """

    def __init__(
        self,
        store: PagedStore,
        lengths: list[int],
        ancestors: Tensor,
        depths: Tensor,
        start: int,
        stop: int,
        *,
        selection: RingView | None = None,
        places: Tensor | None = None,
        replayed: bool = False,
        shape: TreeShape | None = None,
        skip_root: bool = False,
        full_width: bool = False,
        shifts: Tensor | None = None,
    ) -> None:
        """As `Step`; `shape`, `skip_root` and `full_width` say what only masks need, and `shifts` is never given.

        `places` [B] int64: `lengths` on the device, where they are there already. `replayed`: the forward is recorded, and
        will be replayed with other `places`: as long as the store does not move, and no row is shorter than a selection.
        """
        if shifts is not None:
            raise ValueError("a paged store holds no prompt whose mask has holes")
        self.num_new, self.columns = stop - start, max(lengths) + stop
        self.total = self.columns
        self.device = ancestors.device
        self.patterned = False  # whether the model has asked for a mask that is not causal,
        self.windowed = False  # and whether a layer said so
        self.replayed = replayed
        self._kernel = store.recorded_kernel if replayed else store.kernel
        self._plans: dict[object, PagedAttention] = {}
        store.reserve(self.total)
        places = torch.tensor(lengths, device=self.device) if places is None else places
        first = store.first_slots(self.device)
        self._write = (first + places)[:, None] + torch.arange(start, stop, device=self.device)
        self._writes = {self.device: self._write}
        nodes = ancestors[:, start:stop, :stop], depths[:, :stop]
        if selection is None or self.columns - stop <= selection.size:
            known: dict[str, Any] = {"lengths_host": tuple(lengths)}
            if replayed:
                known = {"max_length": store.capacity}
            indptr, indices = store.pages(self.device)
            self.page = PAGE
            self._rows = paged_rows(indptr, indices, places.to(torch.int32), nodes[0], depths=nodes[1], **known)
        else:
            self.page, self._rows = 1, _selected(selection, lengths, places, first, store.capacity, *nodes)

    def write_on(self, device: torch.device) -> Tensor:
        """The slots that the nodes are written to, of all regions: [B, n] on `device`."""
        if device not in self._writes:
            self._writes[device] = self._write.to(device)
        return self._writes[device]

    def attend(self, query: Tensor, key_pages: Tensor, value_pages: Tensor, rule: ScoreRule) -> Tensor:
        """transformers' query [B, Hq, n, D] over pages [pages, page, Hkv, D]: [B, n, Hq, Dv]."""
        self.windowed |= rule.window is not None
        heads = query.shape[1], key_pages.shape[2], query.shape[3], query.dtype, query.device
        plan = self._plans.get(heads)
        if plan is None:
            plan = self._plans[heads] = self._plan(*heads)
        return plan(query.transpose(1, 2), key_pages, value_pages, rule)[0]

    def _plan(self, query_heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device) -> Any:
        rows = self._rows if device == self.device else _on(self._rows, device)
        return plan_paged_attention(
            rows, query_heads=query_heads, kv_heads=kv_heads, head_dim=head_dim, page_size=self.page,
            dtype=dtype, device=device, kernel=self._kernel,
        )  # fmt: skip

    def check(self, told: bool = False) -> bool:
        """Whether a layer told its attention of a window, now or before (`told`): a draft may leave just those layers out.

        Raises `UnsupportedError` if the model's masks have a pattern that none of its layers has told its attention.
        """
        told |= self.windowed
        if self.patterned and not told:
            raise UnsupportedError(
                "The model's masks have a pattern that its layers do not tell their attention, which needs it over pages."
            )
        return told


def _selected(
    selection: RingView,
    lengths: list[int],
    places: Tensor,
    first: Tensor,
    capacity: int,
    visible: Tensor,
    depths: Tensor,
) -> PagedRows:
    """Sinks, window and nodes: behind the sinks, a row's entries are its last ones, all shifted by what is left out."""
    kept = [min(length, selection.size) for length in lengths]
    width = max(kept) + visible.shape[2]
    fills = places.clamp(max=selection.size)
    entry = torch.arange(width, device=places.device)
    slots = torch.where(entry < selection.sink, entry, entry + (places - fills)[:, None])
    indices = (first[:, None] + slots.clamp(max=capacity - 1)).flatten().to(torch.int32)
    indptr = torch.arange(0, (len(lengths) + 1) * width, width, dtype=torch.int32, device=places.device)
    return paged_rows(indptr, indices, fills.to(torch.int32), visible, depths=depths, lengths_host=tuple(kept))


def _on(rows: PagedRows, device: torch.device) -> PagedRows:
    names = ("page_indptr", "page_indices", "lengths", "bitmap", "depths")
    return replace(rows, **{name: getattr(rows, name).to(device) for name in names})
