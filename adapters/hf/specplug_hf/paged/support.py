"""Which models kernels over a paged cache can serve."""

from __future__ import annotations

import importlib.util

from transformers import PreTrainedModel

from specplug import UnsupportedError
from specplug_hf.kernels import PAGED
from specplug_hf.support import BUILDS_ON_MASK, device_of, takes_registered_attention

AUTO = "auto"
_PATTERNS = {"full_attention", "sliding_attention"}  # what a layer may read that paged kernels are told of


def plan_of(model: PreTrainedModel, kernel: str, weights_wanted: bool) -> str | None:
    """What to ask of `plan_paged_attention` for `model`; None: its cache is not paged.

    `weights_wanted`: attention weights are to be returned. Raises `UnsupportedError` for a kernel asked for by name that
    cannot serve.
    """
    if kernel == AUTO:
        found = device_of(model).type == "cuda" and any(map(importlib.util.find_spec, ("triton", "flashinfer")))
        return AUTO if found and why_not(model, weights_wanted) is None else None
    if kernel not in PAGED:
        return None
    cause = why_not(model, weights_wanted)
    if cause is not None:
        raise UnsupportedError(f"kernel={kernel!r} reads a paged cache: {cause}; use kernel='auto'.")
    return PAGED[kernel]


def why_not(model: PreTrainedModel, weights_wanted: bool) -> str | None:
    """What keeps the cache of `model` from being paged, as a clause; None if nothing does."""
    name, config = type(model).__name__, model.config.get_text_config(decoder=True)
    if weights_wanted:
        return "it returns no attention weights (output_attentions)"
    if not takes_registered_attention(model):
        return f"{name} does not take its attention from transformers' registry"
    if config.model_type in BUILDS_ON_MASK:
        return f"{name} builds on its mask"
    others = sorted(set(getattr(config, "layer_types", None) or ()) - _PATTERNS)
    if others:
        return f"{name} has layers of {', '.join(others)}"
    if getattr(config, "attention_chunk_size", None) is not None:
        return f"{name} attends in chunks"
    return None
