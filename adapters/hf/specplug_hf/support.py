"""What is served and what is refused, decided before anything is generated. Every refusal names cause and remedy."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel

from specplug import UnsupportedError

# Implementations that take an arbitrary additive mask, or that we replace for our own forwards.
_MASKED_ATTENTION = {"sdpa", "eager", None}

# By model type: what rules speculation out, and which models build on the mask they are given, which must be whole then.
_PECULIAR = {
    "git": "keeps image tokens in its cache that its mask does not count",
    "mllama_text_model": "has layers that attend to an image's own keys and values, which a tree cannot share",
}
BUILDS_ON_MASK = {"doge"}
# By model type: the option that says up to which length a model attends to all that its mask shows.
_DEPARTS_BEYOND = {"moshi": "sliding_window", "doge": "keep_window_size"}


def check_architecture(model: PreTrainedModel, role: str = "model") -> None:
    """Raise `UnsupportedError` if `model` cannot verify or draft trees."""
    name = f"{role} {type(model).__name__}"
    if model.config.is_encoder_decoder:
        raise UnsupportedError(f"{name} is an encoder-decoder; only decoder-only models are served for now.")
    if getattr(model, "_is_stateful", False):
        raise UnsupportedError(
            f"{name} keeps recurrent state, which cannot be rolled back; generate without assistant=."
        )
    parameters = inspect.signature(model.forward).parameters
    if "past_key_values" not in parameters:
        raise UnsupportedError(f"{name} keeps no KV cache, in which speculation lives; generate without assistant=.")
    if "position_ids" not in parameters:
        raise UnsupportedError(
            f"{name} takes no position_ids, so a tree's siblings cannot share a position; generate without assistant=."
        )
    cause = _peculiarity(model)
    if cause is not None:
        raise UnsupportedError(f"{name} {cause}; generate without assistant=.")
    implementation = model.config._attn_implementation
    if implementation not in _MASKED_ATTENTION and not takes_registered_attention(model):
        raise UnsupportedError(
            f"{name} runs {implementation!r} attention, which drops tree masks; load it with attn_implementation='sdpa'."
        )
    if model.training and any(_drops(module) for module in model.modules()):
        raise UnsupportedError(f"{name} is in training mode with dropout, so its output is not defined; call .eval().")


def _drops(module: nn.Module) -> bool:
    """Whether `module` drops at random in training mode: a dropout layer, or attention that does so itself."""
    share = module.p if isinstance(module, nn.Dropout) else getattr(module, "attention_dropout", 0.0)
    return isinstance(share, float | int) and share > 0


def _peculiarity(model: PreTrainedModel) -> str | None:
    """What an architecture computes from the cache or the mask that a tree cannot give it; each was seen to go wrong."""
    config = model.config.get_text_config(decoder=True)
    if getattr(config, "alibi", False):
        return "computes positions from the mask (ALiBi), where a tree's siblings have none of their own"
    if "local" in getattr(config, "attention_layers", ()):
        return "has local attention whose window it counts in cache slots, not in positions"
    return _PECULIAR.get(config.model_type)


def takes_registered_attention(model: PreTrainedModel) -> bool:
    """Whether the model looks its attention up in transformers' registry."""
    return bool(getattr(model, "_supports_attention_backend", False))


def wants_own_attention(model: PreTrainedModel) -> bool:
    """Whether the model's attention needs something that ours lacks (soft-capping, sinks): its own then computes."""
    config = model.config.get_text_config(decoder=True)
    if getattr(config, "attn_logit_softcapping", None) or config.model_type in BUILDS_ON_MASK:
        return True
    return any(name.rsplit(".", 1)[-1] in ("sinks", "sink") for name, _ in model.named_parameters())


def check_call(model: PreTrainedModel, named: dict[str, Any]) -> None:
    """Raise `UnsupportedError` for what the arguments of `generate` tell, before transformers prepares anything."""
    check_architecture(model)
    if named.get("synced_gpus"):
        raise UnsupportedError(
            "assistant=specplug cannot serve synced_gpus: every process would need the same forwards."
        )
    if named.get("cache_implementation") == "paged":
        raise UnsupportedError(
            "assistant=specplug cannot serve cache_implementation='paged' (no rollback); leave it out."
        )


def check_request(model: PreTrainedModel, config: GenerationConfig, input_ids: Tensor, kwargs: dict[str, Any]) -> None:
    """Raise `UnsupportedError` for a call that cannot be served losslessly."""
    for cause, remedy in _refusals(config, kwargs):
        raise UnsupportedError(f"assistant=specplug cannot serve {cause}; {remedy}.")
    if input_ids.shape[1] == 0 and kwargs.get("inputs_embeds") is None:
        raise UnsupportedError("assistant=specplug cannot serve an empty prompt; pass at least one token (bos).")
    longest = None if config.max_length is None else config.max_length + _unlisted(config, input_ids, kwargs)
    check_positions(model, longest)
    _check_length(model.config.get_text_config(decoder=True), longest, input_ids, kwargs)


def _unlisted(config: GenerationConfig, input_ids: Tensor, kwargs: dict[str, Any]) -> int:
    """Tokens that the model has read or will read which are not in `input_ids`: embeddings, or a cache's."""
    if kwargs.get("inputs_embeds") is not None and input_ids.shape[1] == 0:
        return int(kwargs["inputs_embeds"].shape[1])
    cache, mask = kwargs.get("past_key_values"), kwargs.get("attention_mask")
    if cache is None:
        return 0
    covered = getattr(config, "_mask_length", -1) if mask is None else mask.shape[1]
    return 0 if covered == input_ids.shape[1] else int(cache.get_seq_length())  # the rule of transformers' prefill


def check_positions(model: PreTrainedModel, longest: int | None, role: str = "model") -> None:
    """Raise `UnsupportedError` if a call of up to `longest` tokens has more than `model` has positions."""
    limit = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if limit is not None and longest is not None and longest > limit:
        raise UnsupportedError(
            f"With this {role} {type(model).__name__} the call may reach {longest} tokens, beyond its {limit} positions; "
            "lower max_new_tokens."
        )


def _check_length(text: Any, longest: int | None, input_ids: Tensor, kwargs: dict[str, Any]) -> None:
    if longest is None:
        return
    switch = _rope_switch(text)
    if switch is not None and longest > switch:
        mask = kwargs.get("attention_mask")
        shortest = input_ids.shape[1] if mask is None else int(mask.sum(-1).min())
        if shortest <= switch:
            raise UnsupportedError(
                f"The call may cross {switch} tokens, where the model's rotary embedding (longrope) changes for all of "
                "the cache; lower max_new_tokens, or generate without assistant=."
            )
    name = _DEPARTS_BEYOND.get(text.model_type)
    if name is not None and longest > getattr(text, name):
        raise UnsupportedError(
            f"The call may reach {longest} tokens, beyond {name}={getattr(text, name)}, where what {text.model_type} "
            "attends to depends on its own cache or padding; lower max_new_tokens, or generate without assistant=."
        )


def _rope_switch(text: Any) -> int | None:
    """Tokens beyond which the frequencies of all positions change; None if they never do."""
    rope = getattr(text, "rope_parameters", None) or {}
    kinds = [rope, *(kind for kind in rope.values() if isinstance(kind, dict))]
    switches = [k.get("original_max_position_embeddings") for k in kinds if k.get("rope_type") == "longrope"]
    return min((s for s in switches if s is not None), default=None)


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


def device_of(model: PreTrainedModel) -> torch.device:
    """Where `model` takes its tokens: the device of its embeddings, or the one they are brought to for a forward."""
    embeddings = model.get_input_embeddings()
    hook = getattr(embeddings, "_hf_hook", None)
    device = getattr(hook, "execution_device", None)
    if device is None:
        device = next(embeddings.parameters(), next(model.parameters())).device
    return torch.device("cuda", device) if isinstance(device, int) else torch.device(device)


def unwrapped(model: Any) -> Any:
    """The model inside a PEFT wrapper, whose layers hold the adapters; anything else as it is."""
    inner = getattr(model, "get_base_model", None)
    return inner() if callable(inner) else model


def is_half(dtype: torch.dtype) -> bool:
    """Whether sums in another order may swap two close logits."""
    return dtype in (torch.float16, torch.bfloat16)
