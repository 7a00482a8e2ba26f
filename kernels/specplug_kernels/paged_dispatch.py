"""Tree attention over a paged KV cache: a plan for all layers of a forward, and one call of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from specplug_kernels.flashinfer_failure import FlashInferError, remember
from specplug_kernels.paged_choice import (
    PAGED_KERNELS,
    PagedCall,
    beyond_flashinfer,
    choose,
    first_able,
    flashinfer_path,
)
from specplug_kernels.paged_tree_attention_flashinfer import plan_flashinfer
from specplug_kernels.paged_tree_attention_torch import TorchPagedAttention
from specplug_kernels.paging import PagedAttention, PagedRows, PagedShape, ScoreRule, check_paged

__all__ = ["PAGED_KERNELS", "explain_paged", "paged_tree_attention", "plan_paged_attention"]


def plan_paged_attention(
    rows: PagedRows,
    *,
    query_heads: int,
    kv_heads: int,
    head_dim: int,
    page_size: int,
    dtype: torch.dtype,
    device: torch.device,
    kernel: str = "auto",
) -> PagedAttention:
    """Choose a backend for a forward and prepare it, once for all layers.

    Args:
        rows: where the rows stand and which nodes see which, from :func:`~specplug_kernels.paging.paged_rows`. It must
            not change while the plan is in use.
        query_heads: Hq, a multiple of ``kv_heads``.
        kv_heads: Hkv.
        head_dim: of keys and values, the larger if they differ.
        page_size: tokens a page.
        dtype: of query, keys and values.
        device: where they are.
        kernel: one of :data:`PAGED_KERNELS`; ``"auto"`` chooses, see :func:`explain_paged`.

    Returns:
        What each layer calls as ``plan(query, key_pages, value_pages, rule)``, see :func:`paged_tree_attention`. A layer
        whose rule or tensors a FlashInfer path, or Triton where it was not asked for by name, cannot serve goes to the
        next backend that can. So do all layers from the one on at which FlashInfer cannot build or run a kernel that
        ``"auto"`` chose: the log says it once, and later plans leave it alone.

    Raises:
        ValueError: an unknown kernel; one that cannot be used here, with what to do about it.
        FlashInferError: raised by the layer for which FlashInfer, asked for by name, cannot build or run a kernel.
    """
    shape = PagedShape(query_heads, kv_heads, head_dim, page_size, dtype, device)
    call = PagedCall(shape, rows.num_queries, rows.num_nodes)
    return _planned(*choose(kernel, call), rows, call, by_name=kernel != "auto")


def paged_tree_attention(
    query: Tensor, key_pages: Tensor, value_pages: Tensor, rows: PagedRows, rule: ScoreRule, *, kernel: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Attention of q nodes of each row's tree over the row's committed tokens, each node's ancestors and itself.

    It plans and calls: several layers share a plan from :func:`plan_paged_attention`.

    Args:
        query: ``[B, q, Hq, D]``; fp64, fp32, bf16 or fp16. The last q of the tree's n nodes, all of them where q = n.
        key_pages: ``[pages, page, Hkv, D]``, views allowed; ``Hq`` is a multiple of ``Hkv``. All nodes' keys are in their
            slots already.
        value_pages: ``[pages, page, Hkv, Dv]``, likewise.
        rows: where the rows stand and which nodes see which, from :func:`~specplug_kernels.paging.paged_rows`.
        rule: scale, cap, window and sinks of this layer.
        kernel: one of :data:`PAGED_KERNELS`; ``"auto"`` chooses, see :func:`explain_paged`.

    Returns:
        The output ``[B, q, Hq, Dv]``, contiguous, in the query's dtype; and the natural logarithm of the softmax's
        denominator, the sink included, ``[B, q, Hq]`` float32 (float64 for float64). A node that sees nothing gets zeros.
        Slots that no query of the row sees may hold anything, NaN too. No argument is modified.

    Raises:
        ValueError: tensors that do not fit; an unknown kernel; one that cannot be used here, with what to do about it.
    """
    check_paged(query, key_pages, value_pages, rows, rule)
    plan = plan_paged_attention(
        rows,
        query_heads=query.shape[2],
        kv_heads=key_pages.shape[2],
        head_dim=max(query.shape[3], value_pages.shape[3]),
        page_size=key_pages.shape[1],
        dtype=query.dtype,
        device=query.device,
        kernel=kernel,
    )
    return plan(query, key_pages, value_pages, rule)


def explain_paged(
    num_nodes: int,
    query_heads: int,
    kv_heads: int,
    head_dim: int,
    *,
    num_queries: int | None = None,
    page_size: int = 16,
    dtype: torch.dtype = torch.bfloat16,
    device: str = "cuda",
    kernel: str = "auto",
    rule: ScoreRule | None = None,
) -> str:
    """Which backend serves trees of ``num_nodes`` nodes on a kind of device, and why: ``"triton: ..."``.

    ``num_queries``: how many of the nodes ask; ``None``: all. ``rule``: that of the layer in question; ``None``: a scale and
    nothing else.

    Raises:
        ValueError: a ``kernel`` that is unknown or cannot be used there.
    """
    asking = num_nodes if num_queries is None else num_queries
    shape = PagedShape(query_heads, kv_heads, head_dim, page_size, dtype, torch.device(device))
    call = PagedCall(shape, asking, num_nodes)
    name, reason = choose(kernel, call)
    obstacle = None if rule is None or not name.startswith("flashinfer") else beyond_flashinfer(rule)
    if obstacle is not None:
        name, reason = first_able(("triton", "torch"), call)
        reason = f"{obstacle}; {reason}"
    return f"{name}: {reason}"


def _planned(name: str, reason: str, rows: PagedRows, call: PagedCall, *, by_name: bool) -> PagedAttention:
    """A plan of one backend. Others serve the layers that it cannot, except of Triton asked for by name."""
    if name == "torch":
        return TorchPagedAttention(rows, reason)
    if name == "triton":
        from specplug_kernels.paged_tree_attention_triton import TritonPagedAttention  # noqa: PLC0415  (optional)

        triton = TritonPagedAttention(rows, reason)
        return triton if by_name else _WithFallback(triton, reason, lambda: TorchPagedAttention(rows, reason))
    flashinfer = plan_flashinfer(rows, call.shape, path=flashinfer_path(name))
    others = first_able(("triton", "torch"), call)
    return _WithFallback(flashinfer, reason, lambda: _planned(*others, rows, call, by_name=False), by_name)


class _Particular(PagedAttention, Protocol):
    """A backend that says which layers it cannot serve."""

    def why_not(self, query: Tensor, key_pages: Tensor, value_pages: Tensor, rule: ScoreRule) -> str | None: ...


@dataclass(slots=True)
class _WithFallback:
    """A planned backend, and another for the layers that it cannot serve, planned when the first of them comes.

    ``by_name``: the first was asked for, and if it fails altogether that is raised; else the other serves from there on.
    """

    first: _Particular | None
    reason: str
    plan_other: Callable[[], PagedAttention]
    by_name: bool = False
    _other: PagedAttention | None = field(default=None, init=False, repr=False)

    @property
    def name(self) -> str:
        return self._fallback().name if self.first is None else self.first.name

    def __call__(self, query: Tensor, key_pages: Tensor, value_pages: Tensor, rule: ScoreRule) -> tuple[Tensor, Tensor]:
        if self.first is not None and self.first.why_not(query, key_pages, value_pages, rule) is None:
            try:
                return self.first(query, key_pages, value_pages, rule)
            except FlashInferError as error:
                if self.by_name:
                    raise
                self._give_up(error)
        return self._fallback()(query, key_pages, value_pages, rule)

    def _fallback(self) -> PagedAttention:
        if self._other is None:
            self._other = self.plan_other()
        return self._other

    def _give_up(self, error: FlashInferError) -> None:
        other = self._fallback()
        self.first, self.reason = None, "; ".join(filter(None, (other.reason, error.reason)))
        remember(error, instead=other.name)
