"""What a few query tokens of each row read of the paged cache: an index selection, never a copy."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from specplug.kv_policies import KVPolicy


@dataclass(frozen=True, slots=True)
class SlotTable:
    """Where each position of each row stands in the token pool. `req_to_token` [requests, positions] is SGLang's own."""

    req_to_token: Tensor
    rows: Tensor  # [B] int64

    def at(self, positions: Tensor) -> Tensor:
        """Slots of `positions` [B, n], all >= 0: [B, n] int64."""
        return self.req_to_token[self.rows[:, None], positions].long()

    def first(self, width: int) -> Tensor:
        """Slots of the first `width` positions: [B, width] int64."""
        return self.req_to_token[self.rows, :width].long()


@dataclass(frozen=True, slots=True)
class NodeView:
    """B rows with q query tokens and K columns each.

    `slots` [B, K] int64: place in the token pool of each column; `key_positions` [B, K] int64: its position in the
    row's text; `visible` [B, q, K] bool; `positions` [B, q] int64: the queries' own.
    """

    slots: Tensor
    key_positions: Tensor
    visible: Tensor
    positions: Tensor

    def part(self, start: int, stop: int) -> NodeView:
        """The queries in [start, stop) alone, over the same columns."""
        return NodeView(self.slots, self.key_positions, self.visible[:, start:stop], self.positions[:, start:stop])

    def within(self, window: int) -> Tensor:
        """`visible`, and not further back than `window` positions (a sliding-window layer): [B, q, K] bool."""
        distance = self.positions[:, :, None] - self.key_positions[:, None, :]
        return self.visible & (distance <= window)

    def flat(self) -> tuple[Tensor, Tensor]:
        """Every query as a row of its own: `indptr` [B q + 1] int32 and `indices` [>= indptr[-1]] int32 of the slots it reads.

        The form of SGLang's decode kernels. `indices` has room for every column; what lies behind its end is unused.
        """
        rows = self.visible.flatten(0, 1)
        counts = rows.sum(1, dtype=torch.int32)
        indptr = torch.nn.functional.pad(counts.cumsum(0, dtype=torch.int32), (1, 0))
        slots = self.slots[:, None].expand_as(self.visible).flatten(0, 1)
        place = rows.cumsum(1) - 1 + indptr[:-1, None]
        indices = torch.zeros(rows.numel() + 1, dtype=torch.int32, device=rows.device)
        indices[torch.where(rows, place, rows.numel()).flatten()] = slots.flatten().int()
        return indptr, indices


def verify_view(table: SlotTable, lengths: Tensor, context: int, ancestors: Tensor, depths: Tensor) -> NodeView:
    """Every tree node over its row's whole cache.

    `lengths` [B], at most `context`; `ancestors` [B or 1, N, N] bool, `depths` [B or 1, N]. Node i of row b stands in
    the slot of position `lengths[b] + i`.
    """
    nodes = ancestors.shape[1]
    width = context + nodes
    column = torch.arange(width, device=lengths.device)
    node = column - lengths[:, None]
    inside = (node >= 0) & (node < nodes)
    index = node.clamp(0, nodes - 1)
    rows = len(lengths)
    seen = ancestors.expand(rows, -1, -1).gather(2, index[:, None].expand(-1, nodes, -1)) & inside[:, None]
    visible = seen | (node < 0)[:, None]
    depths = depths.expand(rows, -1)
    key_positions = torch.where(inside, lengths[:, None] + depths.gather(1, index), column)
    return NodeView(table.first(width), key_positions, visible, lengths[:, None] + depths)


def committed_columns(policy: KVPolicy, lengths: Tensor, context: int) -> tuple[Tensor, Tensor]:
    """The committed positions that `policy` lets a draft read: positions [B, K] and which of them count, [B, K] bool."""
    selection = policy.select(lengths)
    if selection is None:
        positions = torch.arange(context, device=lengths.device).expand(len(lengths), -1)
        return positions, positions < lengths[:, None]
    anchors = selection.anchors.flatten(1).expand(len(lengths), -1)
    recent = lengths[:, None] - selection.window
    window = recent + torch.arange(selection.window, device=lengths.device)
    # a position in both is read once: in the window
    counted = (anchors >= 0) & (anchors < recent.clamp(min=0))
    return torch.cat([anchors, window], 1), torch.cat([counted, window >= 0], 1)


def draft_view(
    table: SlotTable, lengths: Tensor, selected: tuple[Tensor, Tensor], first: int, ancestors: Tensor, depths: Tensor
) -> NodeView:
    """Draft nodes over the selected committed positions and the nodes before them.

    `selected`: positions and validity, [B, K] each. Nodes `[first, n)` are the queries; `ancestors` [1 or B, q, n] is
    theirs, `depths` [1 or B, n] everybody's. Node i stands in the slot of position `lengths[b] + i`.
    """
    positions, counted = selected
    rows, nodes = len(lengths), ancestors.shape[2]
    places = lengths[:, None] + torch.arange(nodes, device=lengths.device)
    slots = table.at(torch.cat([positions.clamp(min=0), places], 1))
    seen = ancestors.expand(rows, -1, -1)
    visible = torch.cat([counted[:, None].expand(-1, seen.shape[1], -1), seen], 2)
    node_positions = lengths[:, None] + depths.expand(rows, -1)
    return NodeView(slots, torch.cat([positions, node_positions], 1), visible, node_positions[:, first:])


def reading_view(
    table: SlotTable, policy: KVPolicy, lengths: Tensor, context: int, behind: int, count: int
) -> NodeView:
    """Text that a draft has yet to read: `count` tokens of each row from `behind` before its root on.

    Each is read over what `policy` selects at its own position, whenever that happens: what a row reads must not depend
    on how far behind the others are. A query before a row's beginning stands for nothing, and sees one place all the same:
    attention over nothing is NaN, which spreads.
    """
    device = lengths.device
    positions = lengths[:, None] - behind + torch.arange(count, device=device)
    selection = policy.select(lengths)
    if selection is None:
        anchors, window, widest = positions[:, :0], context, max(0, context - behind)
    else:
        anchors = selection.anchors.flatten(1).expand(len(lengths), -1)
        window = widest = selection.window
    recent = positions[:, :1] - widest + torch.arange(widest, device=device)
    keys, queries = torch.cat([recent, positions], 1)[:, None], positions[:, :, None]
    near = (keys >= 0) & (keys <= queries) & (keys >= queries - window)
    near[:, :, widest:] |= (queries < 0) & torch.eye(count, dtype=torch.bool, device=device)
    # a position in both is read once: in the window
    far = (anchors[:, None] >= 0) & (anchors[:, None] < (queries - window).clamp(min=0))
    columns = torch.cat([anchors, keys[:, 0]], 1)
    return NodeView(table.at(columns.clamp(min=0)), columns, torch.cat([far, near], 2), positions.clamp(min=0))


def flat_mask(lengths: Tensor, total: int, ancestors: Tensor) -> Tensor:
    """The whole-context tree mask as SGLang's GPU kernels take it, rows one after another: [N (total + B N)] bool.

    Row b has N x (lengths[b] + N) entries; `total` is the sum of `lengths`, known on the host; `ancestors` [B or 1, N, N].
    """
    rows, nodes = len(lengths), ancestors.shape[1]
    mask = torch.ones(nodes * (total + rows * nodes), dtype=torch.bool, device=lengths.device)
    widths = lengths + nodes
    starts = nodes * (widths.cumsum(0) - widths)
    node = torch.arange(nodes, device=lengths.device)
    place = starts[:, None, None] + node[:, None] * widths[:, None, None] + lengths[:, None, None] + node
    mask[place.flatten()] = ancestors.expand(rows, -1, -1).flatten()
    return mask
