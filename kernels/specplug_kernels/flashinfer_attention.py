"""One forward's attention through FlashInfer's kernels: planned rule by rule, called by every layer."""

from __future__ import annotations

import importlib
import math
import weakref
from dataclasses import dataclass, field

import torch
from torch import Tensor

from specplug_kernels import flashinfer_wrappers
from specplug_kernels.flashinfer_bitmap import jit_arguments, run_arguments
from specplug_kernels.flashinfer_failure import FlashInferError, UnplannedError
from specplug_kernels.flashinfer_graph import FlashInferGraph
from specplug_kernels.flashinfer_layout import Span, committed_pages, slot_table
from specplug_kernels.flashinfer_paths import FLASHINFER_PATHS
from specplug_kernels.flashinfer_tensors import flat_queries, flat_slots, slots_a_page, unfit_pools
from specplug_kernels.flashinfer_wrappers import Wrapper, workspace_bytes
from specplug_kernels.paging import PagedRows, PagedShape, ScoreRule, check_paged

NOTHING_SEEN = -4.9e4
"""A query that sees nothing has a log-sum-exp of -50000 plus the logarithm of how many entries were hidden; from 0.7 on, -inf
(math.cuh, inf)."""
MERGE_THREADS = 1024
"""The merge kernel gives a vector of 8 elements a thread, and all heads a block (cascade.cuh, MergeStateInPlace)."""


@dataclass(frozen=True, slots=True)
class _Part:
    """One kernel of a layer: what it reads, and how. ``mask``: "none", "bits" or "bitmap"."""

    mask: str
    span: Span
    slots_a_page: int  # 0: whole pages of committed tokens
    scale: float
    cap: float | None


@dataclass(slots=True, weakref_slot=True, eq=False)
class FlashInferAttention:
    """A :class:`~specplug_kernels.paging.PagedAttention` made by :func:`plan_flashinfer`.

    Layers with a window are served by one kernel with a mask, on every path: a window reaches back from a node's position, and
    FlashInfer's own windows go by the order of slots, which is another thing in a tree.
    """

    rows: PagedRows
    lengths: tuple[int, ...]
    shape: PagedShape
    path: str
    graph: FlashInferGraph | None
    _planned: dict[_Part, Wrapper] = field(default_factory=dict, init=False, repr=False)
    _bitmap: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.graph is None:
            self._bitmap = self.rows.bitmap.contiguous()
            weakref.finalize(self, _give_back, self._planned).atexit = False
            return
        self._bitmap = self.graph.bitmap.copy_(self.rows.bitmap)
        for part in self.graph.planned:
            self._plan(part)

    @property
    def name(self) -> str:
        return f"flashinfer-{self.path}"

    @property
    def reason(self) -> str:
        return FLASHINFER_PATHS[self.path]

    def why_not(self, query: Tensor, key_pages: Tensor, value_pages: Tensor, rule: ScoreRule) -> str | None:
        """What keeps this plan from serving a layer, as a phrase; ``None`` if nothing does."""
        if rule.sinks is not None:
            return "FlashInfer's paths take no sinks"
        if any(tensor.dtype != self.shape.dtype for tensor in (query, key_pages, value_pages)):
            return (
                f"it was planned for {self.shape.dtype}, not {query.dtype}, {key_pages.dtype} and {value_pages.dtype}"
            )
        planned = self.shape.query_heads, self.shape.kv_heads, self.shape.head_dim, self.shape.page_size
        asked = query.shape[2], key_pages.shape[2], query.shape[3], key_pages.shape[1]
        if asked != planned:
            return f"it was planned for (query heads, KV heads, head dimension, page size) of {planned}, not {asked}"
        return unfit_pools(key_pages, value_pages, self.shape.head_dim)

    def __call__(self, query: Tensor, key_pages: Tensor, value_pages: Tensor, rule: ScoreRule) -> tuple[Tensor, Tensor]:
        """One layer, as :func:`~specplug_kernels.paged_dispatch.paged_tree_attention`.

        Raises:
            ValueError: what :meth:`why_not` says.
            FlashInferError: a kernel that FlashInfer cannot build or run here.
            UnplannedError: a kernel that was not planned before a CUDA graph was captured.
        """
        check_paged(query, key_pages, value_pages, self.rows, rule)
        reason = self.why_not(query, key_pages, value_pages, rule)
        if reason is not None:
            raise ValueError(f"{self.name} cannot serve this layer: {reason}; kernel='torch' can")
        if query.numel() == 0:
            return query.new_empty(query.shape), query.new_empty(query.shape[:3], dtype=torch.float32)
        window = self._effective(rule.window)
        try:
            out, lse = self._attend(flat_queries(query), key_pages, value_pages, rule, window)
        except (torch.OutOfMemoryError, UnplannedError):
            raise
        except Exception as error:  # whatever its builds, its loader and its checks raise
            raise FlashInferError(self.shape, error) from error
        if self.graph is not None or window is not None or min(self.lengths) == 0:  # else all see a committed token
            blind = lse < NOTHING_SEEN
            out.masked_fill_(blind[..., None], 0.0)
            lse.masked_fill_(blind, -math.inf)
        return out.view(query.shape), lse.mul_(math.log(2)).view(query.shape[:3])

    def _effective(self, window: int | None) -> int | None:
        """None for a window that hides nothing from this batch; in a graph another batch may follow."""
        reaches = max(self.lengths) + self.rows.num_nodes
        return None if self.graph is None and window is not None and window >= reaches else window

    def _attend(
        self, query: Tensor, key_pages: Tensor, value_pages: Tensor, rule: ScoreRule, window: int | None
    ) -> tuple[Tensor, Tensor]:
        """``[B * q, Hq, D]`` and its log-sum-exp to the base of 2."""
        slots, pools = slots_a_page(key_pages), (flat_slots(key_pages), flat_slots(value_pages))
        if self.path != "merge" or window is not None:
            mask = "bitmap" if self.path == "bitmap" and window is None else "bits"
            return self._run(_Part(mask, Span(window=window), slots, rule.scale, rule.logit_cap), query, pools)
        tree = self._run(_Part("bits", Span(tree_only=True), slots, rule.scale, rule.logit_cap), query, pools)
        if self.graph is None and max(self.lengths) == 0:
            return tree
        whole_pages = _Part("none", Span(), 0, rule.scale, rule.logit_cap)
        committed = self._run(whole_pages, query, (key_pages, value_pages))
        _merge_into(*committed, *tree)
        return committed

    def _run(self, part: _Part, query: Tensor, pools: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        if part not in self._planned:
            if query.is_cuda and torch.cuda.is_current_stream_capturing():
                raise UnplannedError("call this layer once outside the CUDA graph: what it needs has not been planned")
            self._plan(part)
        extra = run_arguments(self._bitmap, part.scale, part.cap) if part.mask == "bitmap" else ()
        out, lse = query.new_empty(query.shape), query.new_empty(query.shape[:2], dtype=torch.float32)
        return self._planned[part].inner.run(query, pools, *extra, out=out, lse=lse, return_lse=True)

    def _plan(self, part: _Part) -> None:
        shape, queries = self.shape, self.rows.num_queries
        wrapper = self._wrapper(part)
        if part.slots_a_page == 0:
            table, mask = committed_pages(self.rows, self.lengths, shape.page_size), None
        else:
            masked = part.mask == "bits"
            table, mask = slot_table(
                self.rows, self.lengths, part.span, shape.page_size, part.slots_a_page, masked=masked
            )
        wrapper.plan(
            queries,
            table,
            mask,
            num_qo_heads=shape.query_heads,
            num_kv_heads=shape.kv_heads,
            head_dim_qk=shape.head_dim,
            causal=part.mask == "bitmap",
            sm_scale=part.scale,
            logits_soft_cap=part.cap,
            q_data_type=shape.dtype,
            kv_data_type=shape.dtype,
        )
        self._planned[part] = wrapper

    def _wrapper(self, part: _Part) -> Wrapper:
        shape, captured = self.shape, self.graph is not None
        jit = None
        if part.mask == "bitmap":
            jit = jit_arguments(shape.dtype, shape.head_dim, capped=part.cap is not None)
        size = workspace_bytes(shape, queries=self.rows.num_queries, rows=self.rows.num_rows if captured else 0)
        if self.graph is None:
            return flashinfer_wrappers.borrow(shape.device, size, jit)
        pages = -(-self.graph.max_length // shape.page_size)
        if part.slots_a_page:
            pages = part.span.committed(self.graph.max_length) + self.rows.num_nodes
        return self.graph.wrapper(part, size, jit, pages=pages, masked=part.mask == "bits")


def _give_back(planned: dict[_Part, Wrapper]) -> None:
    flashinfer_wrappers.give_back(planned.values())


def _merge_into(out: Tensor, lse: Tensor, other: Tensor, other_lse: Tensor) -> None:
    """Merge two outputs ``[rows, Hq, D]`` in place; heads that do not fit a block are merged as if they were rows."""
    heads, dim = out.shape[1:]
    most = MERGE_THREADS * 8 // dim
    together = max(count for count in range(1, min(heads, most) + 1) if heads % count == 0)
    folded = [tensor.view(-1, together, dim) for tensor in (out, other)]
    weights = [tensor.view(-1, together) for tensor in (lse, other_lse)]
    importlib.import_module("flashinfer").merge_state_in_place(folded[0], weights[0], folded[1], weights[1])
