"""Model inputs beside ids, mask, positions and cache: plain generation forwards them at every step, so every node gets them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.generation.utils import MULTIMODAL_INPUTS_TO_DROP_OUTSIDE_PREFILL

from specplug import UnsupportedError

# One value a token; a new token gets that of the last one, or zero (text).
_REPEATED = ("token_type_ids",)
_ZERO = ("mm_token_type_ids",)
# Set by every forward itself, or by what was asked for.
_OWN = (
    "input_ids", "inputs_embeds", "attention_mask", "position_ids", "past_key_values", "use_cache", "return_dict",
    "logits_to_keep", "output_attentions", "output_hidden_states", "labels", "tokenizer", "streamer", "synced_gpus",
)  # fmt: skip


class Extras:
    """What a call's nodes get besides. `for_nodes` makes the keyword arguments of one forward."""

    def __init__(self, model_kwargs: Mapping[str, Any]) -> None:
        """Raises `UnsupportedError` for a tensor whose value for new tokens nobody knows."""
        self._constant: dict[str, Any] = {}
        self._by_row: dict[str, Tensor] = {}
        for name, value in model_kwargs.items():
            if value is None or name in _OWN or name in MULTIMODAL_INPUTS_TO_DROP_OUTSIDE_PREFILL:
                continue
            if name in _REPEATED and isinstance(value, Tensor):
                self._by_row[name] = value[:, -1]
            elif name in _ZERO and isinstance(value, Tensor):
                self._by_row[name] = torch.zeros_like(value[:, -1])
            elif isinstance(value, Tensor):
                raise UnsupportedError(
                    f"Model input {name!r} of shape {tuple(value.shape)}: its value for new tokens is not known; "
                    "generate without assistant=."
                )
            else:
                self._constant[name] = value

    def for_nodes(self, rows: list[int], count: int) -> dict[str, Any]:
        """Keyword arguments for `count` nodes of each of the call's `rows`."""
        if not self._by_row:
            return self._constant
        repeated = {name: value[rows, None].expand(-1, count) for name, value in self._by_row.items()}
        return self._constant | repeated
