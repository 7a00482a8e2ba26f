"""Preparing a draft model: from a path or loaded, its vocabulary checked against the target's."""

from __future__ import annotations

import logging
import os
from functools import lru_cache, partial
from typing import Any

import torch
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel

from specplug import OptionError, UnsupportedError
from specplug_hf.attention import AttentionSwap
from specplug_hf.nodes import NodeForward
from specplug_hf.paged.store import PagedStore
from specplug_hf.paged.support import AUTO, plan_of
from specplug_hf.prefill import check_cache
from specplug_hf.probe import tree_fault
from specplug_hf.support import (
    check_architecture,
    device_of,
    takes_registered_attention,
    unwrapped,
    wants_own_attention,
)
from specplug_kernels import available_kernels

logger = logging.getLogger(__name__)

# Checkpoints pad their embeddings to round numbers: Qwen2.5's sizes differ by 0.1 % over one tokenizer.
_PADDING_SHARE = 0.02


def node_forward(model: PreTrainedModel, kernel: str = "auto", own: bool = False) -> NodeForward:
    """The node forward of `model`. `own`: the model's own attention computes (weights were asked for).

    Raises `UnsupportedError` for a kernel that cannot serve the model.
    """
    plan = plan_of(model, kernel, weights_wanted=own)
    swap = None
    if takes_registered_attention(model):
        swap = AttentionSwap(
            model, kernel if kernel in available_kernels() else "auto", own or wants_own_attention(model)
        )
    if plan is None:
        return NodeForward(model, swap)
    paged = NodeForward(model, swap, partial(PagedStore, kernel=plan))
    fault = tree_fault(model, paged)
    if fault is None:
        return paged
    if kernel != AUTO:
        raise UnsupportedError(f"Over a paged cache {type(model).__name__} {fault}; use kernel='auto'.")
    logger.info("specplug: the cache is not paged: %s %s.", type(model).__name__, fault)
    return NodeForward(model, swap)


def prepare_draft(draft: Any, target: PreTrainedModel, vocab_size: int, kernel: str = "auto") -> NodeForward:
    """The node forward of `draft` (a model or a path), fit to draft for `target`, or a `SpecplugError`."""
    if isinstance(draft, str | os.PathLike):
        model = _loaded(os.fspath(draft), target.dtype, device_of(target))
    else:
        model = unwrapped(draft)
    if not isinstance(model, PreTrainedModel):
        raise OptionError(f"A draft must be a PreTrainedModel or a path, got {type(draft).__name__}.")
    check_architecture(model, role="draft")
    check_vocabularies(vocab_size, model.config.get_text_config(decoder=True).vocab_size)
    check_cache(DynamicCache(config=model.config.get_text_config(decoder=True)))
    return node_forward(model, kernel)


def check_vocabularies(target: int, draft: int) -> None:
    """Raise `UnsupportedError` unless the sizes are equal or differ by padding only."""
    if abs(target - draft) > _PADDING_SHARE * max(target, draft):
        raise UnsupportedError(
            f"Target and draft have different vocabularies: {target} and {draft} tokens. Use a draft with the target's "
            "tokenizer."
        )


@lru_cache(maxsize=4)
def _loaded(path: str, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    try:
        return AutoModelForCausalLM.from_pretrained(path, dtype=dtype, use_safetensors=True).to(device).eval()
    except (OSError, ValueError) as error:
        raise OptionError(f"Cannot load the draft {path!r}: {error}") from error
