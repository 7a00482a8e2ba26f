"""How a model turns its keys with their position, found by looking: to read a key as if it stood elsewhere (RoPE, arXiv 2104.09864)."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from specplug import UnsupportedError
from specplug_hf.prefill import layer_kv
from specplug_hf.support import device_of

_FAR = 37  # positions between the two keys that are compared: no wave length of a rotary embedding divides it


class Layout(StrEnum):
    """Which numbers of a key are turned together."""

    NONE = "none"  # a layer without positions
    HALVES = "halves"  # i and i + d/2
    PAIRS = "pairs"  # 2i and 2i + 1


@dataclass(frozen=True, slots=True)
class Rotation:
    """`layouts` of every layer; `frequencies` [d/2] float32, of the first d numbers of a key."""

    layouts: tuple[Layout, ...]
    frequencies: Tensor

    def turned(self, layer: int, keys: Tensor, shifts: Tensor) -> Tensor:
        """`keys` [B, H, n, D] of `layer` as if they stood `shifts` [B, n] positions further on."""
        return _turned(keys, shifts, self.frequencies, self.layouts[layer])


def _turned(keys: Tensor, shifts: Tensor, frequencies: Tensor, layout: Layout) -> Tensor:
    if layout is Layout.NONE:
        return keys
    angles = shifts[..., None].to(keys.device) * frequencies.to(keys.device)  # [B, n, d/2]
    cosine, sine = angles.cos()[:, None], angles.sin()[:, None]
    width = 2 * frequencies.shape[0]
    part = keys[..., :width].float()
    if layout is Layout.HALVES:
        left, right = part.chunk(2, dim=-1)
        turned = torch.cat([left * cosine - right * sine, right * cosine + left * sine], dim=-1)
    else:
        left, right = part[..., 0::2], part[..., 1::2]
        turned = torch.stack([left * cosine - right * sine, right * cosine + left * sine], dim=-1).flatten(-2)
    return torch.cat([turned.to(keys.dtype), keys[..., width:]], dim=-1)


_known: weakref.WeakKeyDictionary[PreTrainedModel, Rotation | str] = weakref.WeakKeyDictionary()


def rotation_of(model: PreTrainedModel) -> Rotation:
    """How `model` turns its keys. Two forwards of one token, the first time. Raises `UnsupportedError` if it cannot be told."""
    if model not in _known:
        _known[model] = _observed(model)
    found = _known[model]
    if isinstance(found, str):
        raise UnsupportedError(
            f"The keys of {type(model).__name__} cannot be read at other distances: {found}; use kv_policy='streaming'."
        )
    return found


def _observed(model: PreTrainedModel) -> Rotation | str:
    found = {
        f"{place}.{name}": waves
        for place, module in model.get_decoder().named_modules()
        for name, waves in module.named_buffers(recurse=False)
        if name.endswith("inv_freq") and not name.startswith("original")
    }
    if len(found) != 1:
        return "it has no rotary embedding" if not found else "its layers have several rotary embeddings"
    (waves,) = found.values()
    near, far = _lone_keys(model, 0), _lone_keys(model, _FAR)
    layouts = []
    for layer, (here, there) in enumerate(zip(near, far, strict=True)):
        layout = _layout(here, there, waves.float())
        if layout is None:
            return f"layer {layer} turns them in a way that is not known"
        layouts.append(layout)
    return Rotation(tuple(layouts), waves.float())


@torch.no_grad()
def _lone_keys(model: PreTrainedModel, position: int) -> list[Tensor]:
    """Every layer's key of one token, alone at `position`: it sees itself only, so nothing but its rotation differs."""
    device = device_of(model)
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    tokens, places = torch.ones((1, 1), dtype=torch.int64), torch.full((1, 1), position)
    model(input_ids=tokens.to(device), position_ids=places.to(device), past_key_values=cache, use_cache=True)
    return [keys for keys, _ in layer_kv(cache)]


def _layout(near: Tensor, far: Tensor, frequencies: Tensor) -> Layout | None:
    """How `near` [1, H, 1, D] becomes `far`; None if in no known way."""
    if near.shape[1] == 0:
        return Layout.NONE
    shifts = torch.full((1, 1), _FAR)
    # models compute angles in single precision, whatever their weights are
    precision = max(torch.finfo(near.dtype).eps, torch.finfo(torch.float32).eps)
    tolerance = 32 * precision * float(near.float().abs().max())
    for layout in Layout:
        if 2 * frequencies.shape[0] > near.shape[3] and layout is not Layout.NONE:
            continue
        if float((_turned(near, shifts, frequencies, layout).float() - far.float()).abs().max()) <= tolerance:
            return layout
    return None
