"""What is served and what is refused, decided before anything is generated. Every refusal names cause and remedy."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from specplug import UnsupportedError
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel

# Implementations that take an arbitrary additive mask, or that we replace for our own forwards.
_MASKED_ATTENTION = {"sdpa", "eager", None}


def check_architecture(model: PreTrainedModel, role: str = "model") -> None:
    """Raise `UnsupportedError` if `model` cannot verify or draft trees."""
    name = f"{role} {type(model).__name__}"
    if model.config.is_encoder_decoder:
        raise UnsupportedError(f"{name} is an encoder-decoder; only decoder-only models are served for now.")
    if getattr(model, "_is_stateful", False):
        raise UnsupportedError(f"{name} keeps recurrent state, which cannot be rolled back; generate without assistant=.")
    if "position_ids" not in inspect.signature(model.forward).parameters:
        raise UnsupportedError(
            f"{name} takes no position_ids, so a tree's siblings cannot share a position; generate without assistant=."
        )
    implementation = model.config._attn_implementation
    if implementation not in _MASKED_ATTENTION and not takes_registered_attention(model):
        raise UnsupportedError(
            f"{name} runs {implementation!r} attention, which drops tree masks; load it with attn_implementation='sdpa'."
        )
    if model.training and any(m.p > 0 for m in model.modules() if isinstance(m, nn.Dropout)):
        raise UnsupportedError(f"{name} is in training mode with dropout, so its output is not defined; call .eval().")


def takes_registered_attention(model: PreTrainedModel) -> bool:
    """Whether the model looks its attention up in transformers' registry."""
    return bool(getattr(model, "_supports_attention_backend", False))


def wants_own_attention(model: PreTrainedModel) -> bool:
    """Whether the model's attention needs something that ours lacks (soft-capping, sinks): its own then computes."""
    config = model.config.get_text_config(decoder=True)
    if getattr(config, "attn_logit_softcapping", None):
        return True
    return any(name.rsplit(".", 1)[-1] in ("sinks", "sink") for name, _ in model.named_parameters())


def check_call(model: PreTrainedModel, named: dict[str, Any]) -> None:
    """Raise `UnsupportedError` for what the arguments of `generate` tell, before transformers prepares anything."""
    check_architecture(model)
    if named.get("synced_gpus"):
        raise UnsupportedError("assistant=specplug cannot serve synced_gpus: every process would need the same forwards.")
    if named.get("cache_implementation") == "paged":
        raise UnsupportedError("assistant=specplug cannot serve cache_implementation='paged' (no rollback); leave it out.")


def check_request(model: PreTrainedModel, config: GenerationConfig, input_ids: Tensor, kwargs: dict[str, Any]) -> None:
    """Raise `UnsupportedError` for a call that cannot be served losslessly."""
    for cause, remedy in _refusals(config, kwargs):
        raise UnsupportedError(f"assistant=specplug cannot serve {cause}; {remedy}.")
    if input_ids.shape[1] == 0 and kwargs.get("inputs_embeds") is None:
        raise UnsupportedError("assistant=specplug cannot serve an empty prompt; pass at least one token (bos).")
    limit = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if limit is not None and config.max_length is not None and config.max_length > limit:
        raise UnsupportedError(
            f"The call may reach {config.max_length} tokens, beyond the model's {limit} positions; lower max_new_tokens."
        )


def _refusals(config: GenerationConfig, kwargs: dict[str, Any]) -> list[tuple[str, str]]:
    """(cause, remedy) of everything in the call that rules speculation out."""
    found = []
    if (config.num_beams or 1) > 1:
        found.append((f"beam search (num_beams={config.num_beams})", "use num_beams=1, or leave assistant= out"))
    if config.penalty_alpha is not None and config.penalty_alpha > 0:
        found.append((f"contrastive search (penalty_alpha={config.penalty_alpha})", "leave penalty_alpha out"))
    if config.dola_layers is not None:
        found.append(("DoLa decoding (dola_layers)", "leave dola_layers out"))
    if config.use_cache is False:
        found.append(("use_cache=False", "leave it out: speculation lives in the cache"))
    if config.prompt_lookup_num_tokens is not None:
        found.append(("transformers' prompt_lookup_num_tokens", "use assistant='prompt_lookup' instead"))
    if config.assistant_early_exit is not None:
        found.append(("transformers' assistant_early_exit", "leave it out"))
    if config.cache_implementation not in (None, "dynamic", "dynamic_full", "static", "hybrid"):
        found.append((f"cache_implementation={config.cache_implementation!r}", "leave it out"))
    if kwargs.get("assistant_model") is not None:
        found.append(("assistant_model= beside assistant=", "pass the draft as assistant=draft_model"))
    if kwargs.get("synced_gpus"):
        found.append(("synced_gpus", "it needs every process to run the same forwards"))
    return found


def vocabulary(model: PreTrainedModel, logits: Tensor) -> int:
    """Tokens the target can emit: the width of its logits."""
    return logits.shape[-1]


def is_half(dtype: torch.dtype) -> bool:
    """Whether sums in another order may swap two close logits."""
    return dtype in (torch.float16, torch.bfloat16)
