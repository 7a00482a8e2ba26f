"""The prompt: run by transformers itself with its own cache, then taken over into our store, padding left out."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel, cache_utils
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from specplug import UnsupportedError
from specplug_hf.nodes import Storage
from specplug_hf.store import SCRATCH, KVStore, LayerKV, slots_for
from specplug_hf.views import RingView

# Layers whose content is plain keys and values of consecutive columns, the last ones at least.
_TAKEN = (DynamicLayer, DynamicSlidingWindowLayer)
_EMPTY = getattr(cache_utils, "DummyLayer", ())  # keeps nothing: a layer that reads another layer's keys and values


def check_cache(cache: Any) -> None:
    """Raise `UnsupportedError` unless every layer of `cache` holds plain keys and values that we can take over."""
    if not isinstance(cache, DynamicCache) or getattr(cache, "offloading", False):
        kind = "an offloaded cache" if getattr(cache, "offloading", False) else type(cache).__name__
        raise UnsupportedError(f"{kind} cannot be rolled back; pass a DynamicCache, or none.")
    for index, layer in enumerate(cache.layers):
        if type(layer) not in _TAKEN and not keeps_nothing(layer):
            raise UnsupportedError(
                f"Layer {index} keeps a {type(layer).__name__}: recurrent, hybrid, indexed or quantised state cannot be "
                "rolled back; generate without assistant=."
            )


def keeps_nothing(layer: Any) -> bool:
    """Whether `layer` of a cache is there for the numbering only."""
    return isinstance(layer, _EMPTY)


def layer_kv(cache: Cache) -> list[LayerKV]:
    """Keys and values of every layer, as transformers holds them; of a layer that keeps nothing, those of no heads."""
    kept = next((layer.keys for layer in cache.layers if layer.keys is not None), None)
    if kept is None or any(layer.keys is None for layer in cache.layers if not keeps_nothing(layer)):
        raise UnsupportedError("The model left layers of its cache empty, so there is nothing to go on from.")
    nothing = kept[:, :0, :, :1]
    return [(nothing, nothing) if keeps_nothing(layer) else (layer.keys, layer.values) for layer in cache.layers]


def slots_of(mask: Tensor | None) -> Tensor | None:
    """Slot of every column under a 2-D attention `mask` [B, L]: its rank among the visible, -1 if masked; None: c -> c."""
    if mask is None or bool(mask.all()):
        return None
    visible = mask.bool()
    return torch.where(visible, visible.long().cumsum(-1) - 1, -1)


def take_over(
    cache: Cache, columns: int, slots: Tensor | None, capacity: int, release: bool, storage: Storage = KVStore
) -> KVStore:
    """Copy what `cache` holds of `columns` columns into a new store; `release` frees each layer's own copy on the way."""
    store = storage(layer_kv(cache), capacity)
    for index, layer in enumerate(cache.layers):
        if keeps_nothing(layer):
            continue
        # a sliding layer holds only its last columns; what it dropped is outside its window for good
        store.load(index, layer.keys, layer.values, slots, columns - layer.keys.shape[2])
        if release:
            layer.keys = layer.values = None
    return store


def take_over_text(
    cache: Cache, columns: int, slots: Tensor | None, room: int, release: bool, storage: Storage = KVStore
) -> KVStore:
    """`take_over` of a text that goes on: `room` tokens more that a row may take have their slots, or growth ends with them."""
    store = take_over(cache, columns, slots, slots_for(columns, room), release, storage)
    store.expect(columns + room + SCRATCH)
    return store


@contextmanager
def positions_read(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """The position ids of this thread's forwards of `model` from here on: some models (PaliGemma) count from one."""
    found: list[Tensor] = []
    thread = threading.get_ident()

    def keep(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        positions = kwargs.get("position_ids")
        if threading.get_ident() == thread and isinstance(positions, Tensor):
            found.append(positions)

    hook = model.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        yield found
    finally:
        hook.remove()


@dataclass(frozen=True, slots=True)
class PrefillRows:
    """Tokens to read: row b's are `history[b, starts[b] : starts[b] + counts[b]]`."""

    history: Tensor  # [B, T] int64
    starts: list[int]
    counts: list[int]

    def left_padded(self) -> tuple[Tensor, Tensor]:
        """Tokens [B, L] and mask [B, L], L the longest count (at least 1)."""
        width = max(1, max(self.counts))
        ends = torch.tensor(self.starts) + torch.tensor(self.counts)
        columns = ends[:, None] - width + torch.arange(width)
        mask = columns >= torch.tensor(self.starts)[:, None]
        tokens = self.history.gather(1, columns.clamp(min=0).to(self.history.device))
        return tokens, mask.to(self.history.device)


def prefill_rows(
    model: PreTrainedModel, rows: PrefillRows, ring: RingView | None, room: int, storage: Storage = KVStore
) -> KVStore:
    """Read `rows` with `model` and return its store: slot = rank of the token, or the ring's slots.

    `room`: tokens that a row may still take.
    """
    tokens, mask = rows.left_padded()
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    check_cache(cache)
    inputs: dict[str, Any] = {} if bool(mask.all()) else {"attention_mask": mask.long()}
    if model._supports_logits_to_keep():
        inputs["logits_to_keep"] = 1
    positions = (mask.long().cumsum(-1) - 1).clamp(min=0)
    model(input_ids=tokens, position_ids=positions, past_key_values=cache, use_cache=True, **inputs)
    slots = slots_of(mask)
    width = tokens.shape[1]
    if ring is None:
        return take_over_text(cache, width, slots, room, release=True, storage=storage)
    place = torch.arange(width, device=tokens.device).expand(len(tokens), -1) if slots is None else slots
    lengths = torch.tensor(rows.counts, device=tokens.device)[:, None]
    kept = (place >= 0) & ((place < ring.sink) | (place >= lengths - ring.window))
    return take_over(cache, width, torch.where(kept, ring.slots(place), -1), ring.size + SCRATCH, release=True)
