"""Preparing a draft model: from a path or loaded, its vocabulary checked against the target's."""

from __future__ import annotations

import logging
import os
import weakref
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel

from specplug import OptionError, UnsupportedError
from specplug_hf.attention import AttentionSwap
from specplug_hf.compiled import KERNELS as COMPILED
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
from specplug_hf.translation import TranslatedDraft, Translation, translation_between, translation_by_name
from specplug_kernels import available_kernels

logger = logging.getLogger(__name__)

# Checkpoints pad their embeddings to round numbers: Qwen2.5's sizes differ by 0.1 % over one tokenizer.
_PADDING_SHARE = 0.02


def node_forward(model: PreTrainedModel, kernel: str = "auto", own: bool = False) -> NodeForward:
    """The node forward of `model`. `own`: the model's own attention computes (weights were asked for).

    Raises `UnsupportedError` for a kernel that cannot serve the model.
    """
    plan = plan_of(model, kernel, weights_wanted=own)
    swap, compiled = None, kernel in COMPILED
    if takes_registered_attention(model):
        swap = AttentionSwap(
            model, kernel if kernel in available_kernels() else "auto", own or wants_own_attention(model)
        )
    if plan is None:
        return NodeForward(model, swap, compiled=compiled)
    paged = NodeForward(model, swap, partial(PagedStore, kernel=plan), compiled)
    fault = tree_fault(model, paged)
    if fault is None:
        return paged
    if kernel != AUTO:
        raise UnsupportedError(f"Over a paged cache {type(model).__name__} {fault}; use kernel='auto'.")
    logger.info("specplug: the cache is not paged: %s %s.", type(model).__name__, fault)
    return NodeForward(model, swap, compiled=compiled)


@dataclass(frozen=True, slots=True)
class PreparedDraft:
    """A draft model's forward, and how its tokens are the target's; None: they are the same."""

    forward: NodeForward
    translation: Translation | None


def prepare_draft(draft: Any, target: PreTrainedModel, vocab_size: int, kernel: str = "auto") -> PreparedDraft:
    """`draft` (a model, a path, a `TranslatedDraft`), fit to draft for `target`, or a `SpecplugError`."""
    if isinstance(draft, TranslatedDraft):
        model: Any = unwrapped(draft.model)
    elif isinstance(draft, str | os.PathLike):
        model = _loaded(os.fspath(draft), target.dtype, device_of(target))
    else:
        model = unwrapped(draft)
    if not isinstance(model, PreTrainedModel):
        raise OptionError(f"A draft must be a PreTrainedModel or a path, got {type(draft).__name__}.")
    check_architecture(model, role="draft")
    check_cache(DynamicCache(config=model.config.get_text_config(decoder=True)))
    translation = _translation(draft, model, target, vocab_size)
    return PreparedDraft(node_forward(model, kernel), translation)


_translations: weakref.WeakKeyDictionary[PreTrainedModel, tuple[Any, Translation]] = weakref.WeakKeyDictionary()


def _translation(draft: Any, model: PreTrainedModel, target: PreTrainedModel, vocab_size: int) -> Translation | None:
    """How tokens are translated, made once for a draft and its target's tokenizer; None for one vocabulary."""
    sizes = vocab_size, model.config.get_text_config(decoder=True).vocab_size
    given = isinstance(draft, TranslatedDraft)
    if not given and not differ(*sizes):
        return None
    key = (draft.tokenizer, draft.target_tokenizer) if given else (target.name_or_path, model.name_or_path)
    known = _translations.get(model)
    if known is None or known[0] != key:
        if given:
            made = translation_between(draft.target_tokenizer, draft.tokenizer, *sizes)
        else:
            made = translation_by_name(target, model, sizes)
        _translations[model] = known = (key, made.to(device_of(model)))
    return known[1]


def differ(target: int, draft: int) -> bool:
    """Whether vocabularies of these sizes differ by more than padding."""
    return abs(target - draft) > _PADDING_SHARE * max(target, draft)


def check_vocabularies(target: int, draft: int) -> None:
    """Raise `UnsupportedError` unless the sizes are equal or differ by padding only."""
    if differ(target, draft):
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
