"""Where FlashInfer finds a batch's entries: page tables, slot tables and packed masks, made on the device once a forward.

Nothing here imports FlashInfer, and nothing reads the device back: sizes follow from lengths that the host knows.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from specplug_kernels.paging import PagedRows, ancestors_of


@dataclass(frozen=True, slots=True)
class PageTable:
    """A batch's pages as a wrapper's ``plan`` takes them: what it reads on the host stands on the CPU."""

    page_size: int
    indptr: Tensor  # [B + 1] int32, CPU
    indices: Tensor  # [indptr[-1]] int32, on the device
    last_page_len: Tensor  # [B] int32, CPU; 0 for a row without pages


@dataclass(frozen=True, slots=True)
class PackedMask:
    """Which query sees which entry: a bit each, query by query, the lowest bit first, each row from a byte of its own."""

    bits: Tensor  # uint8, on the device
    indptr: Tensor  # [B + 1] int32, on the device: the byte where each row begins


@dataclass(frozen=True, slots=True)
class Span:
    """Which of a row's entries one kernel reads: from some entry to the last node.

    ``tree_only``: from the first node. Else from the first entry that a node with this ``window`` may see; ``None``: from 0.
    The root stands at ``length`` and sees ``window - 1`` committed tokens; a padding node that sees no node has depth -1, and
    one token more in its window.
    """

    tree_only: bool = False
    window: int | None = None

    def first(self, lengths: Tensor) -> Tensor:
        """The first entry ``[B]`` of rows with these committed lengths."""
        if self.tree_only:
            return lengths
        return torch.zeros_like(lengths) if self.window is None else (lengths - self.window).clamp(min=0)

    def committed(self, length: int) -> int:
        """How many committed tokens of a row are read, on the host."""
        if self.tree_only:
            return 0
        return length if self.window is None else min(length, self.window)


def committed_pages(rows: PagedRows, lengths: tuple[int, ...], page_size: int) -> PageTable:
    """The pages of every row's committed tokens; pages that are listed and not needed are left out."""
    counts = [-(-length // page_size) for length in lengths]
    row, place, _ = _ragged(-(-rows.lengths.long() // page_size), sum(counts))
    listed = rows.page_indices[rows.page_indptr[row] + place] if sum(counts) else rows.page_indices[:0]
    last = [length - page_size * max(0, count - 1) for length, count in zip(lengths, counts, strict=True)]
    return PageTable(page_size, _pointers(counts), listed.int(), torch.tensor(last, dtype=torch.int32))


def slot_table(
    rows: PagedRows, lengths: tuple[int, ...], span: Span, page_size: int, slots_a_page: int, *, masked: bool = True
) -> tuple[PageTable, PackedMask | None]:
    """A page table of pages of one slot, and the mask that goes with it.

    A tree begins wherever the committed tokens end, in the middle of a page as a rule, so it has no pages of its own; a
    table of single slots begins and ends anywhere. The numbers fit :func:`~specplug_kernels.flashinfer_tensors.flat_slots`.

    Entries that no query of the row sees may hold NaN, which a weight of zero does not stop (0 x NaN), or stand in a page
    that is not listed: an entry of the row that is seen is read in their stead (slot 0 where nothing is), and the mask
    hides it.

    Args:
        rows: the batch.
        lengths: its committed lengths.
        span: which entries.
        page_size: of the cache.
        slots_a_page: how many slots lie between the beginnings of two pages.
        masked: whether to make a mask; without, None is returned in its place.
    """
    sizes = [span.committed(length) + rows.num_nodes for length in lengths]
    on_device = rows.lengths.long()
    first = span.first(on_device)
    counts = on_device + rows.num_nodes - first
    row, place, starts = _ragged(counts, sum(sizes))
    column = place + first[row]
    slots = _slots(rows, row, column, page_size, slots_a_page)
    if span.window is None:  # committed tokens are seen by all: only the nodes need a look
        row, place, _ = _ragged(torch.full_like(counts, rows.num_nodes), rows.num_nodes * rows.num_rows)
        column = place + on_device[row]
    seen = _visible(rows, row, column, span.window)
    last = on_device - 1 if span.window is None else torch.full_like(on_device, -1)  # seen by all, or nobody knows
    stand_in = last.scatter_reduce(0, row, torch.where(seen.any(1), column, -1), "amax")
    read = torch.where(seen.any(1), column, stand_in[row])
    found = _slots(rows, row, read.clamp(min=0), page_size, slots_a_page)
    slots[starts[row] + column - first[row]] = torch.where(read < 0, 0, found)
    table = PageTable(1, _pointers(sizes), slots, torch.ones(len(lengths), dtype=torch.int32))
    if not masked:
        return table, None
    size = sum(-(-rows.num_queries * entries // 8) for entries in sizes)
    return table, _packed(seen, row, column - first[row], counts, size)


def _visible(rows: PagedRows, row: Tensor, column: Tensor, window: int | None) -> Tensor:
    """Which queries see entry ``column[c]`` of row ``row[c]``: ``[c, q]`` bool."""
    nodes, queries, length = rows.num_nodes, rows.num_queries, rows.lengths.long()[row]
    node = (column - length).clamp(min=0)
    committed = column < length
    ancestors = ancestors_of(rows.bitmap, nodes).expand(rows.num_rows, -1, -1)
    seen = ancestors[row, :, node] | committed[:, None]
    if window is None:
        return seen
    depths = rows.depths.long().expand(rows.num_rows, -1)
    position = torch.where(committed, column, length + depths[row, node])
    asking = length[:, None] + depths[row][:, nodes - queries :]
    return seen & (position[:, None] > asking - window)


def _slots(rows: PagedRows, row: Tensor, column: Tensor, page_size: int, slots_a_page: int) -> Tensor:
    """Where entries stand in the pool seen as single slots, int32; anything for entries whose page is not listed."""
    page = rows.page_indices[rows.page_indptr[row] + column // page_size].long()
    return (page * slots_a_page + column % page_size).int()


def _packed(seen: Tensor, row: Tensor, place: Tensor, counts: Tensor, size: int) -> PackedMask:
    """Bits of whole rows: entries that are not among those looked at (``seen [c, q]`` at ``place`` of ``row``) are seen."""
    queries = torch.arange(seen.shape[1], device=seen.device)
    ends = (-(-len(queries) * counts // 8)).cumsum(0)
    pointers = torch.nn.functional.pad(ends, (1, 0))
    flat = torch.ones(8 * size, dtype=torch.bool, device=seen.device)
    flat[(8 * pointers[row] + place)[:, None] + queries * counts[row, None]] = seen
    bytes_of = flat.view(-1, 8).to(torch.uint8) << torch.arange(8, dtype=torch.uint8, device=seen.device)
    return PackedMask(bytes_of.sum(1, dtype=torch.uint8), pointers.int())


def _ragged(counts: Tensor, total: int) -> tuple[Tensor, Tensor, Tensor]:
    """Row and place in its row of each of ``total`` entries, and where rows begin. ``counts`` [B] int64, their sum known."""
    starts = counts.cumsum(0) - counts
    number = torch.arange(len(counts), device=counts.device)
    row = torch.repeat_interleave(number, counts, output_size=total)
    return row, torch.arange(total, device=counts.device) - starts[row], starts


def _pointers(counts: list[int]) -> Tensor:
    return torch.tensor([*accumulate(counts, initial=0)], dtype=torch.int32)
