"""What the rows have written, on the CPU: copied from the device as it is committed, once a round."""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Hashable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from specplug.corpus.growing import GrowingText
from specplug.host import Batch

if TYPE_CHECKING:
    from specplug.round import Round

RECENT = 32  # newest tokens of a row that are copied every round; a row that has more to catch up is copied whole
INTEGERS = ctypes.POINTER(ctypes.c_int64)
Newest = tuple[int, int, list[int]]
GONE = 1024  # rows that have left and are remembered: a round with them may still be looked at


class RowTexts:
    """The committed tokens of every row that was seen and has not left.

    A row's text is what `Batch.history` says it is: rows may join, leave, pause, be cut or come back with another text.
    """

    def __init__(self) -> None:
        self._texts: dict[Hashable, GrowingText] = {}
        self._firsts: dict[Hashable, int] = {}  # tokens that a row had when it was first seen
        self._gone: deque[Hashable] = deque(maxlen=GONE)

    def read(self, batch: Batch) -> list[GrowingText]:
        """Take over what `batch` says, which nothing newer is known than: each row's text. Waits for the device, once."""
        return [
            self._write(batch, place, (start, end), end - start, recent)
            for place, (start, end, recent) in enumerate(newest(batch, RECENT))
        ]

    def observe(self, finished: Round) -> None:
        """Take over what a round committed, unless more is known by now; only if it brought a new row or was a row's last.

        Then it waits for the device, once. A row that leaves without having been named in `Commit.finished` may lack what its last
        round wrote.
        """
        batch = finished.batch
        if not finished.commit.finished and all(row in self._texts or row in self._gone for row in batch.rows):
            return
        new = finished.verdict.tokens(finished.trees)
        starts, ends = _bounds(batch)
        counts = torch.as_tensor(finished.commit.num_new, device=new.device)
        packed = torch.cat([torch.stack([starts, ends, counts], 1), _recent(batch, RECENT), new], 1).tolist()
        for place, (start, end, count, *tokens) in enumerate(packed):
            if self._is_behind(batch.rows[place], end - start + count):
                newest = tokens[max(0, RECENT - (end - start)) : RECENT + count]
                self._write(batch, place, (start, end), end - start + count, newest)

    def take(self, row: Hashable) -> tuple[list[int], int]:
        """Forget `row`: its text, and how many of its tokens were there when it was first seen."""
        self._gone.append(row)
        text = self._texts.pop(row, None)
        return ([], 0) if text is None else (text.tokens, self._firsts.pop(row))

    def _is_behind(self, row: Hashable, length: int) -> bool:
        text = self._texts.get(row)
        return len(text) <= length if text is not None else row not in self._gone

    def _write(self, batch: Batch, place: int, bounds: tuple[int, int], length: int, newest: list[int]) -> GrowingText:
        """Make the text of the row that stands at `place` one of `length` tokens that ends in `newest`.

        `bounds`: where it begins and ends in the batch's history, which may lack its last tokens.
        """
        row, (start, end) = batch.rows[place], bounds
        text = self._texts.get(row)
        if text is None:
            text = self._texts[row] = GrowingText()
            self._firsts[row] = end - start
        if len(text) > length:
            text.cut(length)  # the host has taken something back
        begin = length - len(newest)
        known = newest[: max(0, len(text) - begin)]
        # it has missed too much, or is another text of the same name
        if len(text) < begin or text.tokens[begin:] != known:
            assert batch.history is not None
            text = self._texts[row] = GrowingText(batch.history[place, start:end].tolist())
            known = newest[: end - start - begin]
        text.extend(newest[len(known) :])
        return text


def newest(batch: Batch, count: int) -> list[Newest]:
    """Of each row where its text begins and ends in the history, and its last tokens, at most `count`. Waits for the device, once."""
    assert batch.history is not None  # Need.HISTORY
    readable = batch.history.device.type == "cpu" and batch.history.dtype is torch.int64
    return _in_place(batch, count) if readable else _packed(batch, count)


def _in_place(batch: Batch, count: int) -> list[Newest]:
    """`newest` of what is in the CPU's memory: each tensor operation that is spared is a hundredth of a small model's step."""
    assert batch.history is not None
    starts, ends = _bounds(batch)
    history = batch.history.contiguous()
    tokens, width = ctypes.cast(history.data_ptr(), INTEGERS), history.shape[1]
    bounds = zip(range(0, len(history) * width, width), starts.tolist(), ends.tolist(), strict=True)
    # nothing beside the memory is read, whatever a host says
    return [
        (start, end, tokens[row + max(0, start, end - count) : row + min(end, width)]) for row, start, end in bounds
    ]


def _packed(batch: Batch, count: int) -> list[Newest]:
    """`newest` of what is on another device: one copy of one tensor."""
    starts, ends = _bounds(batch)
    packed = torch.cat([starts[:, None], ends[:, None], _recent(batch, count)], 1).tolist()
    return [(start, end, recent[max(0, count - (end - start)) :]) for start, end, *recent in packed]


def _bounds(batch: Batch) -> tuple[Tensor, Tensor]:
    assert batch.history_starts is not None and batch.history_ends is not None  # Need.HISTORY
    return batch.history_starts, batch.history_ends


def _recent(batch: Batch, count: int) -> Tensor:
    """The last `count` tokens of each row [B, count]; what stands before its text is anything."""
    assert batch.history is not None and batch.history_ends is not None
    columns = batch.history_ends[:, None] + torch.arange(-count, 0, device=batch.history.device)
    return batch.history.gather(1, columns.clamp_(min=0))
