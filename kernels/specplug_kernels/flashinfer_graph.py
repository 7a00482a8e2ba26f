"""Plans whose kernels are captured in a CUDA graph: their index tensors keep their addresses from forward to forward."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Any

import torch
from torch import Tensor

from specplug_kernels.flashinfer_wrappers import Wrapper, concrete, new_wrapper, workspace
from specplug_kernels.paging import PagedRows


class FlashInferGraph:
    """Fixed buffers for one shape of batch, given to ``plan_flashinfer`` as ``graph_buffers``.

    How it goes: plan and call every kind of layer once, outside the graph (kernels are built, buffers made, both remembered);
    plan again and capture; from then on plan before each replay, with the new rows: planning writes into the buffers
    that the captured kernels read. Which layers there are, and with which rules, stays as it was in the first call.

    Args:
        num_rows: B, the same in every replay.
        num_queries: q, likewise.
        num_nodes: n, likewise.
        max_length: committed tokens of the longest row there will ever be.
        page_size: of the cache.
        device: where.
    """

    def __init__(
        self, *, num_rows: int, num_queries: int, num_nodes: int, max_length: int, page_size: int, device: torch.device
    ) -> None:
        self.num_rows, self.num_queries, self.num_nodes = num_rows, num_queries, num_nodes
        self.max_length, self.page_size, self.device = max_length, page_size, concrete(device)
        self.bitmap = torch.zeros(num_rows, num_queries, -(-num_nodes // 32), dtype=torch.int32, device=device)
        self._wrappers: dict[Hashable, Wrapper] = {}

    @property
    def planned(self) -> Iterable[Hashable]:
        """What has been planned so far, and is to be planned before each replay."""
        return tuple(self._wrappers)

    def why_not(self, rows: PagedRows, lengths: tuple[int, ...], page_size: int, device: torch.device) -> str | None:
        """What keeps a batch from these buffers, as a phrase; ``None`` if nothing does."""
        wanted = rows.num_rows, rows.num_queries, rows.num_nodes, page_size, device
        made = self.num_rows, self.num_queries, self.num_nodes, self.page_size, self.device
        if wanted != made:
            return f"the buffers are for (rows, queries, nodes, page size, device) of {made}, not {wanted}"
        if max(lengths, default=0) > self.max_length:
            return f"the buffers are for rows of up to {self.max_length} tokens, not {max(lengths)}"
        return None

    def wrapper(self, part: Hashable, size: int, jit: list[Any] | None, *, pages: int, masked: bool) -> Wrapper:
        """The wrapper of one part of the plan, made when it is first asked for.

        ``size``: bytes of workspace; ``pages``: a row lists at most so many; ``masked``: pages of one slot, with a mask.
        """
        if part not in self._wrappers:
            buffer = workspace(self.device, size)
            inner = new_wrapper(buffer, jit, use_cuda_graph=True, **self._buffers(pages, masked=masked))
            self._wrappers[part] = Wrapper(inner, (self.device, "captured", buffer.numel()))
        return self._wrappers[part]

    def _buffers(self, pages: int, *, masked: bool) -> dict[str, Tensor]:
        """What the wrapper is given to keep its plan in. It takes a buffer for a mask to mean that there is one."""
        pointers = ["qo_indptr_buf", "paged_kv_indptr_buf", *["mask_indptr_buf"] * masked]
        sizes = dict.fromkeys(pointers, self.num_rows + 1)
        sizes |= {"paged_kv_indices_buf": self.num_rows * pages, "paged_kv_last_page_len_buf": self.num_rows}
        buffers = {name: torch.zeros(size, dtype=torch.int32, device=self.device) for name, size in sizes.items()}
        if masked:
            most = self.num_rows * -(-self.num_queries * pages // 8)
            buffers["custom_mask_buf"] = torch.zeros(most, dtype=torch.uint8, device=self.device)
        return buffers
