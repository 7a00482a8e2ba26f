"""Rows that advance at different speeds, shown to stopping criteria and streamers as plain decoding shows them.

Plain decoding moves all rows by one token, then asks the criteria about the whole batch [B0, L0 + s] and streams the
new column. Here every row runs ahead at its own speed, and the frontier, the column that all rows which still generate
have reached, follows one step at a time. What a row wrote beyond the step at which a criterion ends it is taken back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import EosTokenCriteria, MaxLengthCriteria, StoppingCriteriaList

from specplug import OptionError


class Progress:
    """Tokens of one generate call: `ids` [B0, capacity] int64, row r's own tokens in `ids[r, :ends[r]]`, then padding.

    A row ends as plain decoding ends it. With an end token among the criteria (`has_eos`) a finished row is padded;
    without one it goes on generating until every row is finished.
    """

    def __init__(
        self,
        input_ids: Tensor,
        stopping_criteria: StoppingCriteriaList,
        streamer: Any,
        pad_token_id: int | None,
        max_length: int,
    ) -> None:
        """`input_ids` [B0, L0]: the prompts; `max_length`: of a row, prompt included, unless a criterion says other."""
        self.num_rows, self.prompt_length = input_ids.shape
        self.has_eos = any(hasattr(criterion, "eos_token_id") for criterion in stopping_criteria)
        if self.has_eos and pad_token_id is None:
            raise OptionError("An end token among the stopping criteria needs `pad_token_id`; pass it to generate.")
        own = {EosTokenCriteria, MaxLengthCriteria}
        self._criteria, self._streamer = stopping_criteria, streamer
        self._simple = streamer is None and all(type(criterion) in own for criterion in stopping_criteria)
        self._eos = _end_tokens(stopping_criteria, input_ids.device)
        self._pad = 0 if pad_token_id is None else int(pad_token_id)
        lengths = [c.max_length for c in stopping_criteria if type(c) is MaxLengthCriteria]
        # plain decoding looks at the length only after its first token
        self.limit = max(min(lengths, default=max_length), self.prompt_length + 1)
        self.ids = input_ids.new_full((self.num_rows, self.limit), self._pad)
        self.ids[:, : self.prompt_length] = input_ids
        self.ends = [self.prompt_length] * self.num_rows
        self.done = False
        self._frontier = self.prompt_length
        self._finished = [False] * self.num_rows
        self._at_end = [False] * self.num_rows  # its last token is an end token; the frontier may not be there yet

    @property
    def steps(self) -> int:
        """Columns that are generated for every row."""
        return self._frontier - self.prompt_length

    @property
    def active(self) -> list[int]:
        """Rows that need further rounds."""
        return [row for row in range(self.num_rows) if self.room(row)]

    def room(self, row: int) -> int:
        """Tokens that `row` may still take; 0 for one that needs none."""
        stopped = self.done or self._at_end[row] or (self.has_eos and self._finished[row])
        return 0 if stopped else self.limit - self.ends[row]

    def final_end(self, row: int) -> int:
        """Columns of `row` that are its own (its end token included), up to the frontier."""
        return min(self.ends[row], self._frontier)

    def sequences(self) -> Tensor:
        """What plain decoding returns: [B0, L0 + steps], finished rows padded."""
        return self.ids[:, : self._frontier].clone()

    def append(self, rows: Sequence[int], tokens: Tensor, counts: Sequence[int]) -> list[int]:
        """Row `rows[i]` (each once) takes `tokens[i, :counts[i]]` of [b, P]; returns how many of them were kept.

        Cut behind the first end token and at the greatest length.
        """
        tokens = tokens.to(self.ids)
        kept = [min(count, self.room(row)) for row, count in zip(rows, counts, strict=True)]
        if self._eos is not None:
            column = torch.arange(tokens.shape[1], device=tokens.device)
            ends = torch.where(torch.isin(tokens, self._eos), column, tokens.shape[1])
            firsts = ends.amin(dim=1).tolist() if tokens.shape[1] else [0] * len(kept)
            for i, first in enumerate(firsts):
                if first < kept[i]:
                    kept[i], self._at_end[rows[i]] = first + 1, True
        self._write(rows, tokens, kept)
        for row, count in zip(rows, kept, strict=True):
            self.ends[row] += count
        return kept

    def _write(self, rows: Sequence[int], tokens: Tensor, counts: Sequence[int]) -> None:
        if len(rows) == 1:
            end = self.ends[rows[0]]
            self.ids[rows[0], end : end + counts[0]] = tokens[0, : counts[0]]
            return
        device = self.ids.device
        row, start, count = torch.tensor([rows, [self.ends[r] for r in rows], counts], device=device)[..., None]
        offset = torch.arange(tokens.shape[1], device=device)
        new = offset < count
        self.ids[row.expand_as(new)[new], (start + offset)[new]] = tokens[new]

    def advance(self, scores: Callable[[int], Any] | None = None) -> None:
        """Move the frontier as far as it goes; `scores(s)` is what the criteria get beside the ids at step s."""
        if self._simple:
            self._jump()
            return
        while not self.done and self._frontier < self._reached():
            self._step(scores)

    def _reached(self) -> int:
        """The column that every row which still generates has reached."""
        running = [end for end, gone in zip(self.ends, self._finished, strict=True) if not (gone and self.has_eos)]
        return min(running)

    def _jump(self) -> None:
        """To where the slowest row is: nothing but end tokens and the greatest length can stop, nobody watches."""
        running = [self.ends[row] for row in self.active]
        self._frontier = min(running) if running else max(self.ends)
        self._finished = [at and end <= self._frontier for at, end in zip(self._at_end, self.ends, strict=True)]
        self.done = not running

    def _step(self, scores: Callable[[int], Any] | None) -> None:
        """One step of plain decoding: what happens there once the token is chosen."""
        column = self._frontier + 1
        seen = self.ids[:, :column].contiguous()
        stop = self._criteria(seen, None if scores is None else scores(column - self.prompt_length))
        for row, stopped in enumerate(stop.tolist()):
            if stopped and not self._finished[row]:
                self._finish(row, column)
        self._frontier = column
        self.done = column == self.limit or all(self._finished)
        if self.done:
            for row in range(self.num_rows):
                self._cut(row, column)
        if self._streamer is not None:
            self._streamer.put(self.ids[:, column - 1].clone().cpu())

    def _finish(self, row: int, column: int) -> None:
        self._finished[row] = True
        if self.has_eos:
            self._cut(row, column)

    def _cut(self, row: int, column: int) -> None:
        """Take back what `row` wrote beyond `column`."""
        self.ids[row, column : self.ends[row]] = self._pad
        self.ends[row] = min(self.ends[row], column)

    def close(self) -> None:
        """Tell the streamer that this was all."""
        if self._streamer is not None:
            self._streamer.end()


def _end_tokens(criteria: StoppingCriteriaList, device: torch.device) -> Tensor | None:
    """Tokens at which a row surely ends; None if there are none."""
    tokens = [c.eos_token_id.flatten().to(device) for c in criteria if type(c) is EosTokenCriteria]
    return torch.cat(tokens) if tokens else None
