"""Where the rows of a batch stand in a paged KV cache, and which tree nodes see which: made once a forward, for all layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

WORD = 32
"""Nodes in one word of an ancestor bitmap."""


@dataclass(frozen=True, slots=True)
class PagedRows:
    """B rows: committed tokens in pages, and a tree of n nodes in the slots right behind them. Made by :func:`paged_rows`.

    Entry ``t`` of row ``b`` stands in page ``page_indices[page_indptr[b] + t // page]`` at offset ``t % page``. The
    first ``lengths[b]`` entries are committed, entry ``lengths[b] + i`` is node ``i``. Pages behind a row's last entry
    may be listed; they are never read.

    The queries are the last q nodes: query ``i`` is node ``n - q + i``. A verify asks for the whole tree (q = n), a
    draft for the level that it forwards.
    """

    page_indptr: Tensor  # [B + 1] int32 or int64
    page_indices: Tensor  # [at least page_indptr[-1]] int32 or int64
    lengths: Tensor  # [B] int32 or int64
    bitmap: Tensor  # [B or 1, q, ceil(n / 32)] int32: bit j % 32 of word j // 32 = query i sees node j
    depths: Tensor  # [B or 1, n] int32: node i stands at position lengths[b] + depths[b, i]
    max_length: int | None  # at least every row's length; None = not known on the host
    lengths_host: tuple[int, ...] | None  # lengths, where the host knows them

    @property
    def num_rows(self) -> int:
        return self.lengths.shape[0]

    @property
    def num_nodes(self) -> int:
        """n: nodes of each row's tree that stand in the cache."""
        return self.depths.shape[1]

    @property
    def num_queries(self) -> int:
        """q: how many of them ask, the last."""
        return self.bitmap.shape[1]


@dataclass(frozen=True, slots=True)
class PagedShape:
    """What all layers of a forward over pages have in common: sizes, dtype and device of queries, keys and values.

    ``query_heads`` is a multiple of ``kv_heads``; ``head_dim`` is the larger one if those of keys and values differ;
    ``page_size`` counts tokens.
    """

    query_heads: int
    kv_heads: int
    head_dim: int
    page_size: int
    dtype: torch.dtype
    device: torch.device

    @property
    def groups(self) -> int:
        """Query heads a KV head."""
        return self.query_heads // self.kv_heads


@dataclass(frozen=True, slots=True)
class ScoreRule:
    """What one layer does with its dot products before and in the softmax.

    ``scale``: factor on them. ``logit_cap``: if set, a score ``s`` becomes ``cap * tanh(s / cap)`` (Gemma 2, arXiv
    2408.00118, section 2). ``window``: if set, a node at position p sees positions greater than ``p - window`` only.
    ``sinks`` [Hq] float32: one more logit a head in the denominator, without a value, neither scaled nor capped (GPT-OSS).
    """

    scale: float
    logit_cap: float | None = None
    window: int | None = None
    sinks: Tensor | None = None

    def __post_init__(self) -> None:
        if self.logit_cap is not None and self.logit_cap <= 0:
            raise ValueError(f"logit_cap must be positive, or None for no cap; got {self.logit_cap}")
        if self.window is not None and self.window < 1:
            raise ValueError(
                f"a window holds at least the node itself: 1 or more, or None for no window; got {self.window}"
            )


class PagedAttention(Protocol):
    """Attention of one forward's nodes over a paged cache: planned once, called by every layer.

    Made by :func:`~specplug_kernels.paged_dispatch.plan_paged_attention`. The rows it was planned for must not change
    while it is in use.
    """

    @property
    def name(self) -> str:
        """The backend that was picked."""
        ...

    @property
    def reason(self) -> str:
        """Why it was picked, as a phrase."""
        ...

    def __call__(self, query: Tensor, key_pages: Tensor, value_pages: Tensor, rule: ScoreRule) -> tuple[Tensor, Tensor]:
        """One layer, as :func:`~specplug_kernels.paged_dispatch.paged_tree_attention`."""
        ...


def paged_rows(
    page_indptr: Tensor,
    page_indices: Tensor,
    lengths: Tensor,
    ancestors: Tensor,
    *,
    depths: Tensor | None = None,
    max_length: int | None = None,
    lengths_host: Sequence[int] | None = None,
) -> PagedRows:
    """Describe a batch; the tensors are kept, not copied.

    Args:
        page_indptr: ``[B + 1]`` int32 or int64, where each row's pages begin in ``page_indices``.
        page_indices: ``[at least page_indptr[-1]]`` int32 or int64.
        lengths: ``[B]`` int32 or int64, committed tokens in the cache, the tree not counted.
        ancestors: ``[B or 1, q, n]`` bool, q of at most n; the last q nodes ask, ``[i, j]``: node ``n - q + i`` sees
            node ``j`` (itself and its ancestors).
        depths: ``[B or 1, n]``, the root's is 0; ``None``: counted from ``ancestors``, where all nodes ask.
        max_length: at least every row's length. Nothing is read back from a device to learn it; without it the Triton
            kernel guesses from the number of pages (which changes speed only) and the torch one looks.
        lengths_host: the lengths as Python numbers, where the host knows them: ``max_length`` then follows from them, and
            FlashInfer, which plans on the host, need not wait for the device.

    Raises:
        ValueError: shapes or dtypes that do not fit; no depths for nodes that do not ask; on a CPU also a length above
            ``max_length``, or ``lengths_host`` that are not the lengths.
    """
    if ancestors.dtype != torch.bool or ancestors.ndim != 3 or ancestors.shape[1] > ancestors.shape[2]:
        raise ValueError(
            f"ancestors must be bool [B or 1, q, n] with q of at most n, not {ancestors.dtype} {tuple(ancestors.shape)}"
        )
    rows, nodes = lengths.shape[0], ancestors.shape[2]
    if page_indptr.shape != (rows + 1,):
        raise ValueError(f"page_indptr must be [{rows + 1}] for {rows} rows, not {tuple(page_indptr.shape)}")
    if ancestors.shape[0] not in (1, rows):
        raise ValueError(
            f"ancestors of {ancestors.shape[0]} rows do not fit a batch of {rows}: 1 or {rows} are expected"
        )
    for name, tensor in (("page_indptr", page_indptr), ("page_indices", page_indices), ("lengths", lengths)):
        if tensor.dtype not in (torch.int32, torch.int64):
            raise ValueError(f"{name} must be int32 or int64, not {tensor.dtype}")
    if depths is None:
        if ancestors.shape[1] < nodes:
            raise ValueError(
                f"depths of all {nodes} nodes must be given: the {ancestors.shape[1]} that ask do not tell"
            )
        depths = ancestors.sum(2, dtype=torch.int32) - 1
    if depths.shape[1:] != (nodes,) or depths.shape[0] not in (1, rows):
        raise ValueError(f"depths of {tuple(depths.shape)} do not fit {rows} rows of {nodes} nodes")
    on_host = None if lengths_host is None else tuple(lengths_host)
    max_length = _checked_lengths(lengths, on_host, max_length)
    bitmap = ancestor_bitmap(ancestors)
    return PagedRows(page_indptr, page_indices, lengths, bitmap, depths.to(torch.int32), max_length, on_host)


def _checked_lengths(lengths: Tensor, on_host: tuple[int, ...] | None, max_length: int | None) -> int | None:
    """The largest length, or what is at least that, as far as the host knows; a device is not asked."""
    known = lengths.tolist() if lengths.device.type == "cpu" else on_host
    if on_host is not None and (len(on_host) != len(lengths) or list(on_host) != list(known)):
        raise ValueError(f"lengths_host of {list(on_host)} are not the lengths of the {len(lengths)} rows")
    longest = max(known, default=0) if known is not None else 0
    if max_length is None:
        return None if on_host is None else longest
    if longest > max_length:
        raise ValueError(f"a row has {longest} committed tokens, more than max_length={max_length}")
    return max_length


def ancestor_bitmap(ancestors: Tensor) -> Tensor:
    """Pack ``[..., q, n]`` bool into ``[..., q, ceil(n / 32)]`` int32: bit ``j % 32`` of word ``j // 32`` is column j."""
    nodes = ancestors.shape[-1]
    words = -(-nodes // WORD)
    bits = torch.nn.functional.pad(ancestors, (0, words * WORD - nodes)).unflatten(-1, (words, WORD))
    weights = torch.ones((), dtype=torch.int64, device=ancestors.device) << torch.arange(WORD, device=ancestors.device)
    packed = (bits * weights).sum(-1)
    return torch.where(packed >= 2**31, packed - 2**32, packed).to(torch.int32)


def ancestors_of(bitmap: Tensor, nodes: int) -> Tensor:
    """Unpack a bitmap ``[..., q, ceil(nodes / 32)]`` int32 into ``[..., q, nodes]`` bool."""
    bits = bitmap[..., None] >> torch.arange(WORD, dtype=torch.int32, device=bitmap.device)
    return (bits & 1).bool().flatten(-2)[..., :nodes]


def check_paged(query: Tensor, key_pages: Tensor, value_pages: Tensor, rows: PagedRows, rule: ScoreRule) -> None:
    """Raise ValueError if a layer's tensors do not fit each other or ``rows``; nothing is read back from a device."""
    if query.ndim != 4 or query.shape[:2] != (rows.num_rows, rows.num_queries):
        raise ValueError(
            f"a query of {tuple(query.shape)} does not fit: [{rows.num_rows}, {rows.num_queries}, Hq, D] is expected"
        )
    if key_pages.ndim != 4 or key_pages.shape[:3] != value_pages.shape[:3] or key_pages.shape[3] != query.shape[3]:
        raise ValueError(
            f"pages of {tuple(key_pages.shape)} and {tuple(value_pages.shape)} do not fit: [pages, page, Hkv, "
            f"{query.shape[3]}] and [pages, page, Hkv, Dv] are expected"
        )
    if query.shape[2] % key_pages.shape[2]:
        raise ValueError(f"{query.shape[2]} query heads are not a multiple of {key_pages.shape[2]} KV heads")
    if rule.sinks is not None and rule.sinks.shape != query.shape[2:3]:
        raise ValueError(f"sinks of {tuple(rule.sinks.shape)} do not fit {query.shape[2]} query heads: one a head")
