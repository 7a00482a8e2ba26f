"""One forward of tree nodes: where their keys and values go, and what each node sees."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from specplug.tree import TreeShape, shape_tensors
from specplug_hf.views import View
from specplug_kernels import lines_of

MaskFunction = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class Step:
    """Visibility of nodes `[start, stop)` of each row's tree, whose scratch already holds the nodes before `start`.

    A slot is visible to a node if it is committed (below the row's fill) or holds the node itself or an ancestor.
    `prefix` slots are visible to every node of every row; only the columns behind them need a mask.
    `ancestors` [B or 1, >= stop, >= stop] bool, `depths` [B or 1, >= stop] (depth 0 stands at column `lengths`).
    """

    replayed = False  # a forward over rows of their own lengths is never recorded

    def __init__(
        self,
        view: View,
        lengths: list[int],
        ancestors: Tensor,
        depths: Tensor,
        start: int,
        stop: int,
        shape: TreeShape | None = None,
        skip_root: bool = False,
        full_width: bool = False,
        shifts: Tensor | None = None,
    ) -> None:
        self.view, self.lengths = view, lengths
        self.start, self.stop = start, stop
        self.fills, self.bases = view.fills(lengths), view.bases(lengths)
        self.total = max(self.bases) + stop
        self.full_width = full_width
        self.prefix = min(self.fills)
        self.device = ancestors.device
        self._ancestors, self._depths = ancestors, depths
        self._shape, self._skip_root = shape, skip_root
        self._shifts = shifts
        self._uniform = len(set(self.fills)) == 1 and len(set(self.bases)) == 1
        self._masks: dict[object, Tensor | None] = {}
        self._writes: dict[torch.device, Tensor] = {}
        self._lines: dict[object, Tensor | None] = {}
        if self._uniform:
            self.write: int | Tensor = self.bases[0] + start
        else:
            self.write = torch.tensor(self.bases, device=self.device)[:, None] + torch.arange(
                start, stop, device=self.device
            )

    def write_on(self, device: torch.device) -> int | Tensor:
        """The slots that the nodes are written to, as an index on `device`: the first of all rows', or each one's [B, n]."""
        if isinstance(self.write, int) or self.write.device == device:
            return self.write
        if device not in self._writes:
            self._writes[device] = self.write.to(device)
        return self._writes[device]

    def lines(self, buffer: Tensor, slots: int | Tensor) -> Tensor | None:
        """`slots` as `write_kv` takes them the quickest, for `buffer` and all others of its shape; None where they are a range."""
        if isinstance(slots, int):
            return None
        key = (buffer.device, buffer.shape[:3], buffer.is_contiguous())
        if key not in self._lines:
            self._lines[key] = lines_of(buffer, slots)
        return self._lines[key]

    def check(self, told: bool = False) -> bool:
        """Nothing can be wrong once a forward has run: its masks were ours. See `PagedStep.check`."""
        return told

    @property
    def num_new(self) -> int:
        """Nodes forwarded."""
        return self.stop - self.start

    @property
    def columns(self) -> int:
        """Columns of the longest row with its nodes."""
        return max(self.lengths) + self.stop

    def causal_bias(self, dtype: torch.dtype) -> Tensor | None:
        """Additive mask [B or 1, 1, n, total - prefix] (the whole width if `full_width`); None: all is visible."""
        key = ("causal", dtype)
        if key not in self._masks:
            self._masks[key] = self._make_causal_bias(dtype)
        return self._masks[key]

    def _make_causal_bias(self, dtype: torch.dtype) -> Tensor | None:
        if not self.full_width and self._uniform and self.fills == self.bases:
            if self.stop == 1:
                return None
            if self._shape is not None:
                return _shape_bias(self._shape, self.start, self.stop, self._skip_root, dtype, self.device)
        first = 0 if self.full_width else self.prefix
        return additive(self._visible(first), dtype)

    def _visible(self, first: int) -> Tensor:
        """[B, 1, n, total - first] bool."""
        slot = torch.arange(first, self.total, device=self.device)
        fills = torch.tensor(self.fills, device=self.device)[:, None]
        node = slot - torch.tensor(self.bases, device=self.device)[:, None]
        inside = (node >= 0) & (node < self.stop)
        index = node.clamp(0, self.stop - 1)[:, None].expand(-1, self.num_new, -1)
        ancestors = self._ancestors[:, self.start : self.stop].expand(len(self.fills), -1, -1)
        seen = ancestors.gather(2, index) & inside[:, None]
        return (seen | (slot < fills)[:, None])[:, None]

    def bias(self, mask_function: MaskFunction, dtype: torch.dtype) -> Tensor:
        """Additive mask [B, 1, n, total] of a model's own pattern (sliding, chunked, ...), evaluated on columns.

        A pattern speaks of columns of the sequence; a tree node's column is its row's length plus its depth.
        """
        rows = len(self.lengths)
        queries, keys = self._columns()
        batch = torch.arange(rows, device=self.device)[:, None, None, None]
        head = torch.zeros_like(batch)
        pattern = mask_function(batch, head, queries[:, None, :, None], keys[:, None, None, :])
        return additive(self._visible(0) & pattern, dtype)

    def _columns(self) -> tuple[Tensor, Tensor]:
        """Columns of the queries [B, n] and of the slots [B, total]."""
        lengths = torch.tensor(self.lengths, device=self.device)
        slot = torch.arange(self.total, device=self.device)
        node = slot - torch.tensor(self.bases, device=self.device)[:, None]
        depths = self._depths.expand(len(self.lengths), -1)
        tree = lengths[:, None] + depths.gather(1, node.clamp(0, self.stop - 1))
        committed = self.view.positions(slot, lengths)
        if self._shifts is not None:
            # the prompt had masked columns in between: a committed position stands further right than its rank
            width = self._shifts.shape[1]
            shift = self._shifts.gather(1, committed.clamp(0, width - 1))
            committed, tree = committed + shift, tree + self._shifts[:, -1:]
        keys = torch.where(node >= 0, tree, committed)
        queries = lengths[:, None] + depths[:, self.start : self.stop]
        return (queries if self._shifts is None else queries + self._shifts[:, -1:]), keys


def additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where visible, the most negative finite number elsewhere (a row that sees nothing must not become NaN)."""
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, torch.finfo(dtype).min)


@lru_cache(maxsize=512)
def _shape_bias(
    shape: TreeShape, start: int, stop: int, skip_root: bool, dtype: torch.dtype, device: torch.device
) -> Tensor | None:
    """The bias within a tree of one shape, [1, 1, n, stop]; None if every node sees all before it."""
    first = 1 if skip_root else 0
    ancestors = shape_tensors(shape, device).ancestors[first:, first:]
    visible = ancestors[start:stop, :stop]
    return None if bool(visible.all()) else additive(visible[None, None], dtype)
