"""What the rows have written, on the CPU: copied from the device as it is committed, once a round."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from specplug.corpus.text import END
from specplug.host import Batch

if TYPE_CHECKING:
    from specplug.round import Round

RECENT = 32  # newest tokens of a row that are copied every round; a row that has more to catch up is copied whole
GONE = 1024  # rows that have left and are remembered: a round with them may still be looked at


class RowTexts:
    """The committed tokens of every row that was seen and has not left.

    A row's text is what `Batch.history` says it is: rows may join, leave, pause, be cut or come back with another text.
    """

    def __init__(self) -> None:
        # a row's tokens begin in column 1, with `END` before and behind them
        self._tokens = torch.full((0, 0), END, dtype=torch.int32)
        self._lengths = torch.zeros(0, dtype=torch.int64)
        self._slots: dict[Hashable, int] = {}
        self._firsts: dict[Hashable, int] = {}  # tokens that a row had when it was first seen
        self._gone: deque[Hashable] = deque(maxlen=GONE)

    def read(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Take over what `batch` says, which nothing newer is known than. Waits for the device, once.

        Returns the texts [B, T] int32, of which row b's stands in [1, 1 + lengths[b]) with `END` around it, and `lengths` [B]
        int64, both on the CPU.
        """
        starts, ends = _bounds(batch)
        bounds, recent = _to_cpu(torch.stack([starts, ends], 1), _recent(batch, RECENT))
        lengths = bounds[:, 1] - bounds[:, 0]
        self._write(batch, batch.rows, range(batch.num_rows), bounds, lengths, recent)
        slots = torch.tensor([self._slots[row] for row in batch.rows])
        return self._tokens[slots, : int(lengths.max()) + 2], lengths

    def observe(self, finished: Round) -> None:
        """Take over what a round committed, unless more is known by now; only if it brought a new row or was a row's last.

        Then it waits for the device, once. A row that leaves without having been named in `Commit.finished` may lack what its last
        round wrote.
        """
        batch = finished.batch
        if not finished.commit.finished and all(row in self._slots or row in self._gone for row in batch.rows):
            return
        new = finished.verdict.tokens(finished.trees)
        starts, ends = _bounds(batch)
        counts = torch.as_tensor(finished.commit.num_new, device=new.device)
        width = RECENT + new.shape[1]
        last = counts[:, None] + torch.arange(width, device=new.device)
        recent = torch.cat([_recent(batch, width), new], 1).gather(1, last)
        bounds, recent = _to_cpu(torch.stack([starts, ends, counts], 1), recent)
        lengths = bounds[:, 1] - bounds[:, 0] + bounds[:, 2]
        places = [place for place, row in enumerate(batch.rows) if self._is_behind(row, int(lengths[place]))]
        if places:
            rows = [batch.rows[place] for place in places]
            self._write(batch, rows, places, bounds[places], lengths[places], recent[places])

    def take(self, row: Hashable) -> tuple[Tensor, int]:
        """Forget `row`: its text [n] int32, and how many of its tokens were there when it was first seen."""
        self._gone.append(row)
        slot = self._slots.pop(row, None)
        if slot is None:
            return self._tokens.new_empty(0), 0
        length = int(self._lengths[slot])
        text = self._tokens[slot, 1 : length + 1].clone()
        self._tokens[slot], self._lengths[slot] = END, 0
        return text, self._firsts.pop(row)

    def _is_behind(self, row: Hashable, length: int) -> bool:
        slot = self._slots.get(row)
        return int(self._lengths[slot]) <= length if slot is not None else row not in self._gone

    def _write(
        self,
        batch: Batch,
        rows: Sequence[Hashable],
        places: Sequence[int],
        bounds: Tensor,
        lengths: Tensor,
        recent: Tensor,
    ) -> None:
        """Texts of `lengths` [b] that end in `recent` [b, R], of the rows that stand at `places` in the batch.

        `bounds` [b, 2 or more]: where their text begins and ends in the batch's history.
        """
        before = (bounds[:, 1] - bounds[:, 0]).tolist()
        slots = torch.tensor([self._slot(row, length) for row, length in zip(rows, before, strict=True)])
        self._make_room(int(lengths.max()) + 2)
        width = recent.shape[1]
        columns = 1 + lengths[:, None] - width + torch.arange(width)
        real, known = columns > 0, self._lengths[slots]
        columns = columns.clamp(min=0)
        same = self._tokens[slots[:, None], columns] == recent
        same |= ~real | (columns > known[:, None])
        strange = (known < lengths - width) | ~same.all(
            1
        )  # it has missed too much, or is another text of the same name
        for i in strange.nonzero().flatten().tolist():
            start, end = bounds[i, :2].tolist()
            assert batch.history is not None
            whole = batch.history[places[i], start:end].to(device="cpu", dtype=torch.int32)
            self._tokens[slots[i], 1 : 1 + len(whole)] = whole
        self._tokens[slots[:, None], columns] = recent.where(real, END)
        for i in (known > lengths).nonzero().flatten().tolist():  # the host took something back
            self._tokens[slots[i], 1 + lengths[i] :] = END
        self._lengths[slots] = lengths

    def _slot(self, row: Hashable, length: int) -> int:
        slot = self._slots.get(row)
        if slot is None:
            taken = set(self._slots.values())
            slot = next(number for number in range(len(taken) + 1) if number not in taken)
            self._slots[row], self._firsts[row] = slot, length
        return slot

    def _make_room(self, width: int) -> None:
        """Places for every slot, and so many columns; twice as many as there were, so that it is seldom done."""
        rows, columns = self._tokens.shape
        needed = 1 + max(self._slots.values())
        if needed <= rows and width <= columns:
            return
        more_rows = rows if needed <= rows else max(needed, 2 * rows)
        more_columns = columns if width <= columns else max(width, 2 * columns)
        tokens = torch.full((more_rows, more_columns), END, dtype=torch.int32)
        tokens[:rows, :columns] = self._tokens
        self._tokens = tokens
        self._lengths = torch.cat([self._lengths, self._lengths.new_zeros(more_rows - rows)])


def _bounds(batch: Batch) -> tuple[Tensor, Tensor]:
    assert batch.history_starts is not None and batch.history_ends is not None  # Need.HISTORY
    return batch.history_starts, batch.history_ends


def _recent(batch: Batch, count: int) -> Tensor:
    """The last `count` tokens of each row [B, count]; what stands before its text is anything."""
    assert batch.history is not None and batch.history_ends is not None
    columns = batch.history_ends[:, None] - count + torch.arange(count, device=batch.history.device)
    return batch.history.gather(1, columns.clamp(min=0))


def _to_cpu(bounds: Tensor, recent: Tensor) -> tuple[Tensor, Tensor]:
    """Both in one copy; the tokens become int32."""
    packed = torch.cat([bounds, recent], 1).cpu()
    return packed[:, : bounds.shape[1]], packed[:, bounds.shape[1] :].to(torch.int32)
