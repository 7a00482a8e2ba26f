"""What `lookahead` remembers of its rows: a window of Jacobi iteration each, and the n-grams that came out of it."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from specplug.host import Batch

NONE = -1  # the first token of no n-gram


class JacobiRows:
    """Hung on the rows' identities. W columns, n-grams of N tokens, P of them a row; all tensors int64, on one device."""

    def __init__(self, columns: int, ngram: int, memory: int, device: torch.device) -> None:
        self._windows = torch.empty((0, ngram - 1, columns), dtype=torch.int64, device=device)
        self._ngrams = torch.empty((0, memory, ngram), dtype=torch.int64, device=device)  # of a row the newest first
        self._places: dict[Hashable, int] = {}
        self._free: list[int] = []
        self._last: tuple[tuple[Hashable, ...], Tensor] = ((), torch.empty(0))

    def places(self, batch: Batch) -> Tensor:
        """Where the rows stand in here, [B]; those not seen before begin with the end of their text as a guess."""
        fresh = [place for place, row in enumerate(batch.rows) if row not in self._places]
        if fresh:
            self._begin(batch, fresh)
        if self._last[0] is not batch.rows and self._last[0] != batch.rows:
            places = torch.tensor([self._places[row] for row in batch.rows], device=self._windows.device)
            self._last = (batch.rows, places)
        return self._last[1]

    def window(self, places: Tensor, roots: Tensor) -> Tensor:
        """The rows' windows, [B, N - 1, W], whose first token is the root [B]."""
        window = self._windows[places]
        window[:, 0, 0] = roots
        return window

    def following(self, places: Tensor, roots: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """`count` n-grams that begin with `roots` [B], the newest first: [B, count, N - 1] without it; [B, count]: those found."""
        ngrams = self._ngrams[places]
        age = torch.arange(ngrams.shape[1], 0, -1, device=ngrams.device)
        newest = age.where(ngrams[..., 0] == roots[:, None], 0).topk(count, dim=1)
        chosen = newest.indices[..., None].expand(-1, -1, ngrams.shape[2])
        return ngrams.gather(1, chosen)[..., 1:], newest.values > 0

    def learn(self, rows: Sequence[Hashable], window: Tensor, chosen: Tensor, real: Tensor) -> None:
        """Behind `window` [B, N - 1, W], whose first columns were read, the target chose `chosen` [B, columns] where `real`.

        Rows that have left meanwhile are passed over.
        """
        known = [place for place, row in enumerate(rows) if row in self._places]
        if not known:
            return
        if len(known) < len(rows):
            window, chosen, real = window[known], chosen[known], real[known]
        places = torch.tensor([self._places[rows[place]] for place in known], device=window.device)
        read = window[:, :, : chosen.shape[1]]
        ngrams = torch.cat([read, chosen[:, None]], 1)  # [B, N, columns]
        following = window.clone()
        following[:, :, : chosen.shape[1]] = ngrams[:, 1:].where(real[:, None], read)
        self._windows[places] = following
        self._remember(places, ngrams.transpose(1, 2).masked_fill(~real[..., None], NONE))

    def forget(self, rows: Sequence[Hashable]) -> None:
        """These rows have left for good."""
        for row in rows:
            place = self._places.pop(row, None)
            if place is not None:
                self._free.append(place)
                self._last = ((), self._last[1])

    def _remember(self, places: Tensor, fresh: Tensor) -> None:
        """Put `fresh` [B, columns, N] in front; what was known already is new again."""
        known = self._ngrams[places]
        again = (known[:, :, None] == fresh[:, None]).all(-1).any(2)
        twice = (fresh[:, :, None] == fresh[:, None]).all(-1).tril(-1).any(2)
        listed = torch.cat([fresh.masked_fill(twice[..., None], NONE), known.masked_fill(again[..., None], NONE)], 1)
        self._ngrams[places] = listed[:, : known.shape[1]]

    def _begin(self, batch: Batch, fresh: list[int]) -> None:
        """Guess that the text goes on as it last did; all levels the same, so that the window begins as one chain."""
        missing = len(fresh) - len(self._free)
        if missing > 0:
            self._free += range(len(self._windows), len(self._windows) + missing)
            self._windows = _longer(self._windows, missing)
            self._ngrams = _longer(self._ngrams, missing)
        places = [self._free.pop() for _ in fresh]
        self._places.update({batch.rows[place]: own for place, own in zip(fresh, places, strict=True)})
        history, ends, starts = batch.history, batch.history_ends, batch.history_starts
        assert history is not None and ends is not None and starts is not None  # Need.HISTORY
        levels, columns = self._windows.shape[1:]
        ahead = torch.arange(levels, device=history.device)[:, None] + torch.arange(columns, device=history.device)
        last = ends[fresh, None, None] - 1
        columns_read = (last - (levels + columns - 2) + ahead).maximum(starts[fresh, None, None])
        self._windows[places] = history[fresh].gather(1, columns_read.flatten(1)).view(len(fresh), levels, columns)
        self._ngrams[places] = NONE


def _longer(tensor: Tensor, count: int) -> Tensor:
    return torch.cat([tensor, tensor.new_full((count, *tensor.shape[1:]), NONE)])
