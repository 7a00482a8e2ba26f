"""Where the rows of a batch stand in a paged KV cache, and which tree nodes see which: made once a forward, for all layers."""

from __future__ import annotations

from dataclasses import dataclass

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
    """

    page_indptr: Tensor  # [B + 1] int32 or int64
    page_indices: Tensor  # [at least page_indptr[-1]] int32 or int64
    lengths: Tensor  # [B] int32 or int64
    bitmap: Tensor  # [B or 1, n, ceil(n / 32)] int32: bit j % 32 of word j // 32 = node i sees node j
    depths: Tensor  # [B or 1, n] int32: node i stands at position lengths[b] + depths[b, i]
    max_length: int | None  # at least every row's length; None = not known on the host

    @property
    def num_rows(self) -> int:
        return self.lengths.shape[0]

    @property
    def num_nodes(self) -> int:
        return self.bitmap.shape[1]


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


def paged_rows(
    page_indptr: Tensor,
    page_indices: Tensor,
    lengths: Tensor,
    ancestors: Tensor,
    *,
    depths: Tensor | None = None,
    max_length: int | None = None,
) -> PagedRows:
    """Describe a batch; the tensors are kept, not copied.

    Args:
        page_indptr: ``[B + 1]`` int32 or int64, where each row's pages begin in ``page_indices``.
        page_indices: ``[at least page_indptr[-1]]`` int32 or int64.
        lengths: ``[B]`` int32 or int64, committed tokens in the cache, the tree not counted.
        ancestors: ``[B or 1, n, n]`` bool, ``[i, j]``: node i sees node j (itself and its ancestors).
        depths: ``[B or 1, n]``, the root's is 0; ``None``: counted from ``ancestors``.
        max_length: at least every row's length. Nothing is read back from a device to learn it; without it the Triton
            kernel guesses from the number of pages (which changes speed only) and the torch one looks.

    Raises:
        ValueError: shapes or dtypes that do not fit; on a CPU also a length above ``max_length``.
    """
    if ancestors.dtype != torch.bool or ancestors.ndim != 3 or ancestors.shape[1] != ancestors.shape[2]:
        raise ValueError(f"ancestors must be bool [B or 1, n, n], not {ancestors.dtype} {tuple(ancestors.shape)}")
    rows = lengths.shape[0]
    if page_indptr.shape != (rows + 1,):
        raise ValueError(f"page_indptr must be [{rows + 1}] for {rows} rows, not {tuple(page_indptr.shape)}")
    if ancestors.shape[0] not in (1, rows):
        raise ValueError(
            f"ancestors of {ancestors.shape[0]} rows do not fit a batch of {rows}: 1 or {rows} are expected"
        )
    for name, tensor in (("page_indptr", page_indptr), ("page_indices", page_indices), ("lengths", lengths)):
        if tensor.dtype not in (torch.int32, torch.int64):
            raise ValueError(f"{name} must be int32 or int64, not {tensor.dtype}")
    if max_length is not None and lengths.device.type == "cpu" and rows and int(lengths.max()) > max_length:
        raise ValueError(f"a row has {int(lengths.max())} committed tokens, more than max_length={max_length}")
    depths = ancestors.sum(2, dtype=torch.int32) - 1 if depths is None else depths.to(torch.int32)
    if depths.shape[1:] != ancestors.shape[1:2] or depths.shape[0] not in (1, rows):
        raise ValueError(f"depths of {tuple(depths.shape)} do not fit {rows} rows of {ancestors.shape[1]} nodes")
    return PagedRows(page_indptr, page_indices, lengths, ancestor_bitmap(ancestors), depths, max_length)


def ancestor_bitmap(ancestors: Tensor) -> Tensor:
    """Pack ``[..., n, n]`` bool into ``[..., n, ceil(n / 32)]`` int32: bit ``j % 32`` of word ``j // 32`` is column j."""
    nodes = ancestors.shape[-1]
    words = -(-nodes // WORD)
    bits = torch.nn.functional.pad(ancestors, (0, words * WORD - nodes)).unflatten(-1, (words, WORD))
    weights = torch.ones((), dtype=torch.int64, device=ancestors.device) << torch.arange(WORD, device=ancestors.device)
    packed = (bits * weights).sum(-1)
    return torch.where(packed >= 2**31, packed - 2**32, packed).to(torch.int32)


def ancestors_of(bitmap: Tensor) -> Tensor:
    """Unpack a bitmap ``[..., n, W]`` int32 into ``[..., n, n]`` bool."""
    bits = bitmap[..., None] >> torch.arange(WORD, dtype=torch.int32, device=bitmap.device)
    return (bits & 1).bool().flatten(-2)[..., : bitmap.shape[-2]]


def check_paged(query: Tensor, key_pages: Tensor, value_pages: Tensor, rows: PagedRows, rule: ScoreRule) -> None:
    """Raise ValueError if a layer's tensors do not fit each other or ``rows``; nothing is read back from a device."""
    if query.ndim != 4 or query.shape[:2] != (rows.num_rows, rows.num_nodes):
        raise ValueError(
            f"a query of {tuple(query.shape)} does not fit: [{rows.num_rows}, {rows.num_nodes}, Hq, D] is expected"
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
