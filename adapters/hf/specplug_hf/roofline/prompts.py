"""A batch whose context is random keys and values put straight into the cache: nothing is read, and the times are the same.

Every row and every layer holds the same entries. Where they are only to be copied (`borrowed`), one row of one layer is all
the memory they take; what is copied from them lies in memory row by row and layer by layer, as after any prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from specplug_hf.calibration.grid import Cell
from specplug_hf.calibration.room import kv_bytes


@dataclass(frozen=True, slots=True)
class CachedPrompt:
    """What `generate` takes for a context that is in the cache, but for its last token. `input_ids` [B, S] int64."""

    input_ids: Tensor
    cache: DynamicCache

    def inputs(self) -> dict[str, Any]:
        """Keyword arguments for `generate`."""
        mask = torch.ones_like(self.input_ids)
        return {"input_ids": self.input_ids, "attention_mask": mask, "past_key_values": self.cache}


class Borrowed(DynamicCache):
    """A cache whose rows and layers all show the same entries `keys`, `values` [B, H, S, D], views of one row.

    It is there to be taken over once, by a forward of the last token and a reader of `layers`: the token's own entries
    are dropped for those of the last column, and its attention sees itself alone. Its output means nothing.
    """

    def __init__(self, config: Any, keys: Tensor, values: Tensor) -> None:
        super().__init__(config=config)
        self._keys, self._values = keys, values
        for layer in self.layers:
            layer.lazy_initialization(keys, values)
            layer.keys, layer.values = keys[:, :, :-1], values[:, :, :-1]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Show the last column too; the token attends to what it brought, [B, H, 1, D]."""
        self.layers[layer_idx].keys, self.layers[layer_idx].values = self._keys, self._values
        return key_states, value_states


def borrowed(model: PreTrainedModel, cell: Cell) -> CachedPrompt:
    """For a reader that copies: its own copy is the only large one."""
    keys, values = _entries(model, cell, cell.context)
    return CachedPrompt(_tokens(model, cell), Borrowed(_text(model), keys, values))


def owned(model: PreTrainedModel, cell: Cell) -> CachedPrompt:
    """transformers' own cache, filled as its forwards would have filled it: `cell.context` - 1 columns in each layer."""
    keys, values = _entries(model, cell, cell.context - 1)
    cache = DynamicCache(config=_text(model))
    for layer in range(_text(model).num_hidden_layers):
        cache.update(keys, values, layer)
    return CachedPrompt(_tokens(model, cell), cache)


def kept_bytes(model: PreTrainedModel, cell: Cell) -> float:
    """Bytes of the context's keys and values, and of the entries that they are copied from."""
    return kv_bytes(model) * (cell.tokens + cell.context / _text(model).num_hidden_layers)


def _entries(model: PreTrainedModel, cell: Cell, columns: int) -> tuple[Tensor, Tensor]:
    """[B, H, columns, D] twice, one row in memory: standard normal, about what a random model's own are like."""
    config = _text(model)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    generator = torch.Generator(model.device).manual_seed(0)
    size = (2, 1, config.num_key_value_heads, columns, width)
    pair = torch.randn(size, dtype=model.dtype, device=model.device, generator=generator)
    keys, values = pair.expand(2, cell.rows, *size[2:])
    return keys, values


def _tokens(model: PreTrainedModel, cell: Cell) -> Tensor:
    """[B, S]: only the last of a row is read."""
    return torch.ones((cell.rows, cell.context), dtype=torch.int64, device=model.device)


def _text(model: PreTrainedModel) -> Any:
    return model.config.get_text_config(decoder=True)
