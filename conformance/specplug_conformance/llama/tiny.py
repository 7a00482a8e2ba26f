"""Tiny random models: a target whose logits depend on all of its context, and drafts that often agree with it."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel


def tiny(
    seed: int = 0,
    dtype: str = "float64",
    attention: str = "sdpa",
    vocab: int = 97,
    scale: float = 0.25,
    **config: Any,
) -> Any:
    """A random Llama in eval mode. `scale`: standard deviation of the weights; `config` overrides its settings."""
    settings = dict(
        vocab_size=vocab, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, pad_token_id=0, bos_token_id=1, eos_token_id=None,
        initializer_range=scale, attn_implementation=attention, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(**(settings | config))).to(getattr(torch, dtype)).eval()
    model.generation_config.pad_token_id = model.config.pad_token_id
    return model


def disturbed(model: PreTrainedModel, noise: float, seed: int = 1) -> Any:
    """A copy of `model` that often agrees with it, and often does not."""
    draft: Any = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in draft.parameters():
            rough = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter += (noise * parameter.std() * rough).to(parameter.dtype)
    return draft
