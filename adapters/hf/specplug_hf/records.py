"""What plain `generate` returns beside the tokens: scores, logits, hidden states, attentions, step by step and row by row.

Rounds deliver them for the accepted path of each row, several steps at once; they are cut to single steps here. Plain
decoding goes on feeding padding to a row that has ended, and returns what comes of it: so do we (completion.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig


@dataclass(slots=True)
class RowRecord:
    """One row's steps: each list has one entry a generated token."""

    scores: list[Tensor] = field(default_factory=list)  # [V]
    logits: list[Tensor] = field(default_factory=list)  # [V]
    hidden: list[tuple[Tensor, ...]] = field(default_factory=list)  # a layer: [1, H]
    attentions: list[tuple[Tensor, ...]] = field(default_factory=list)  # a layer: [heads, 1, columns]
    kv: list[tuple[Tensor, Tensor]] | None = None  # a layer: keys, values [H, slots, D]; set when the row leaves

    def cut(self, steps: int) -> None:
        """Forget what the row did beyond its end."""
        for steps_kept in (self.scores, self.logits, self.hidden, self.attentions):
            del steps_kept[steps:]


class Records:
    """Collects what `generation_config` asks for; nothing, at no cost, if that is nothing."""

    def __init__(self, config: GenerationConfig, num_rows: int, keep_cache: bool) -> None:
        wanted = bool(config.return_dict_in_generate)
        self.scores = wanted and bool(config.output_scores)
        self.logits = wanted and bool(config.output_logits)
        self.hidden = wanted and bool(config.output_hidden_states)
        self.attentions = wanted and bool(config.output_attentions)
        self.keep_cache = keep_cache
        self.any = self.scores or self.logits or self.hidden or self.attentions
        self.rows = [RowRecord() for _ in range(num_rows)]
        self.forward_flags: dict[str, Any] = {}
        if self.hidden:
            self.forward_flags["output_hidden_states"] = True
        if self.attentions:
            self.forward_flags["output_attentions"] = True
        self._output: Any = None
        self._scores: Tensor | None = None
        self._logits: Tensor | None = None
        self._columns: Any = None
        self._shown: list[Tensor] = []  # scores that criteria were given, a step: [B0, V]

    @property
    def needs_completion(self) -> bool:
        """Whether steps past a row's end are part of what is returned."""
        return self.any or self.keep_cache

    def keep_forward(self, output: Any, columns: Any = None) -> None:
        """The target's output of this round; `columns(weights, row, node)` puts a node's attention row in column order."""
        if self.hidden or self.attentions:
            self._output, self._columns = output, columns

    def keep_scores(self, logits: Tensor, scores: Tensor) -> None:
        """This round's raw and processed logits [B, N, V] float32."""
        if self.scores:
            self._scores = scores
        if self.logits:
            self._logits = logits

    def add(self, rows: Sequence[int], path: Tensor, counts: Sequence[int]) -> None:
        """Row `rows[b]` got `counts[b]` tokens, predicted at the first nodes of `path[b]`."""
        if not self.any:
            return
        for place, row in enumerate(rows):
            for node in path[place, : counts[place]].tolist():
                self._add_step(self.rows[row], place, node)

    def _add_step(self, record: RowRecord, place: int, node: int) -> None:
        if self._scores is not None:
            record.scores.append(self._scores[place, node].clone())
        if self._logits is not None:
            record.logits.append(self._logits[place, node].clone())
        if self.hidden:
            record.hidden.append(tuple(layer[place, node : node + 1].clone() for layer in self._output.hidden_states))
        if self.attentions:
            record.attentions.append(
                tuple(self._columns(layer[place, :, node], place, node) for layer in self._output.attentions)
            )

    def scores_so_far(self, steps: int) -> tuple[Tensor, ...] | None:
        """What plain generation hands to stopping criteria after `steps` tokens.

        A row that has ended repeats its last scores: those of the padding behind it are not known before the end.
        """
        if not self.scores:
            return None
        for step in range(len(self._shown), steps):
            self._shown.append(torch.stack([row.scores[min(step, len(row.scores) - 1)] for row in self.rows]))
        return tuple(self._shown[:steps])

    def retire(self, host: Any, rows: Sequence[int]) -> None:
        """Keep the KV of rows that leave the batch, if the cache will be returned or the row must be completed."""
        if not self.needs_completion:
            return
        for row in rows:
            place = host.rows.index(row)
            length = host.lengths[place]
            self.rows[row].kv = [
                (keys[:, :length].clone(), values[:, :length].clone()) for keys, values in host.store.row(place)
            ]

    def _stack(self, name: str, steps: int) -> tuple[Tensor, ...]:
        return tuple(torch.stack([getattr(row, name)[step] for row in self.rows]) for step in range(steps))

    def fields(self, steps: int, prefill: Any) -> dict[str, Any]:
        """The fields of the returned object. `prefill`: the prompt's own output, which the first step is part of."""
        out: dict[str, Any] = {"scores": None, "logits": None, "hidden_states": None, "attentions": None}
        if self.scores:
            out["scores"] = self._stack("scores", steps)
        if self.logits:
            out["logits"] = self._stack("logits", steps)
        if self.hidden:
            later = [self._layers("hidden", step) for step in range(1, steps)]
            out["hidden_states"] = (prefill.hidden_states, *later)
        if self.attentions:
            later = [self._layers("attentions", step) for step in range(1, steps)]
            out["attentions"] = (prefill.attentions, *later)
        return out

    def _layers(self, name: str, step: int) -> tuple[Tensor, ...]:
        rows = [getattr(row, name)[step] for row in self.rows]
        return tuple(torch.stack(layer) for layer in zip(*rows, strict=True))
