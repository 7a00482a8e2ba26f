"""Prompts as batches: one half of the texts to choose set-ups on, the other half to measure them on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList

from specplug import OptionError
from specplug_hf.commands.dictation import Dictation, turning_text
from specplug_hf.commands.models import Models

# Lengths of the rows of a ragged batch, as shares of the context; repeated as often as there are rows.
RAGGED = (1.0, 0.6, 0.85, 0.4)


@dataclass(frozen=True, slots=True)
class PromptBatch:
    """Left-padded prompts: `input_ids` and `attention_mask` [B, L] int64, and what they are called.

    `dictated` [n] int64: what every row has to write, whatever the model says.
    """

    input_ids: Tensor
    attention_mask: Tensor
    name: str
    dictated: Tensor | None = None

    def inputs(self) -> dict[str, Any]:
        """Keyword arguments for `generate`."""
        inputs: dict[str, Any] = {"input_ids": self.input_ids, "attention_mask": self.attention_mask}
        if self.dictated is not None:
            dictation = Dictation(self.dictated, self.input_ids.shape[1])
            inputs["logits_processor"] = LogitsProcessorList([dictation])
        return inputs

    def turning(self, length: int, vocab_size: int, seed: int) -> PromptBatch:
        """The same prompts, to go on for `length` tokens that are predictable for the first half only."""
        text = turning_text(length, vocab_size, seed).to(self.input_ids.device)
        return replace(self, dictated=text, name=f"{self.name}, turning")


class Prompts:
    """Held-out texts in the tokens of the model at hand."""

    def __init__(self, models: Models, builtin: bool) -> None:
        self._models, self._builtin = models, builtin
        self._tokens = lru_cache(maxsize=64)(self._text_tokens)

    def count(self) -> int:
        """How many texts there are."""
        from specplug_hf.demo import prompts  # noqa: PLC0415

        return int(prompts.count())

    def batch(self, context: int, rows: int, number: int, half: int, ragged: bool = False) -> PromptBatch:
        """Batch `number` of one half (0: to choose on, 1: to measure on) of the texts, the longest row `context` long."""
        mine = list(range(half, self.count(), 2))
        chosen = [mine[(number * rows + row) % len(mine)] for row in range(rows)]
        shares = [RAGGED[row % len(RAGGED)] if ragged else 1.0 for row in range(rows)]
        lengths = [max(1, round(context * share)) for share in shares]
        texts = [self._row(index, length) for index, length in zip(chosen, lengths, strict=True)]
        return self._padded(texts, f"texts {','.join(map(str, chosen))}")

    def encode(self, text: str) -> PromptBatch:
        """A batch of one row: `text`."""
        ids = self._models.tokenizer(text, add_special_tokens=not self._builtin)["input_ids"]
        if not ids:
            raise OptionError("The prompt is empty: give at least one token.")
        return self._padded([ids], "the given prompt")

    def _padded(self, rows: list[list[int]], name: str) -> PromptBatch:
        width = max(map(len, rows))
        pad = int(self._models.target.generation_config.pad_token_id)
        ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        device = self._models.target.device
        return PromptBatch(ids.to(device), mask.to(device), name)

    def _row(self, index: int, length: int) -> list[int]:
        if self._builtin:
            from specplug_hf.demo import prompt  # noqa: PLC0415

            return prompt(length, index)[0].tolist()
        tokens: list[int] = []
        for offset in range(self.count()):
            tokens += self._tokens((index + 2 * offset) % self.count())
            if len(tokens) >= length:
                return tokens[:length]
        raise OptionError(
            f"The texts that ship give {len(tokens)} tokens of this model; a context of {length} is too long."
        )

    def _text_tokens(self, index: int) -> list[int]:
        from specplug_hf.demo import prompts  # noqa: PLC0415

        text = prompts.prompt_text(prompts.TEXT_TOKENS, index)
        ids: Any = self._models.tokenizer(text, add_special_tokens=False)["input_ids"]
        return list(ids)
