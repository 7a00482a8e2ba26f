"""What a server's measured times hold for, and how much of its model a forward reads."""

from __future__ import annotations

from typing import Any

import torch

from specplug.cost.identity import device_name, dtype_name, model_name


def name_of(runner: Any) -> str:
    """Class and sizes of a model runner's model: the same wherever it was loaded from."""
    return model_name(type(runner.model).__name__, runner.model_config.hf_text_config)


def identity_of(runner: Any) -> tuple[str, str, str]:
    """Model, device, dtype of a model runner."""
    return name_of(runner), device_name(torch.device(runner.device)), dtype_name(runner.dtype)


def weight_bytes(runner: Any) -> float:
    """Bytes of weights that a forward reads on this rank: all but an embedding of which it looks up a few rows."""
    tied = getattr(runner.model_config.hf_text_config, "tie_word_embeddings", False)
    return float(
        sum(
            parameter.numel() * parameter.element_size()
            for name, parameter in runner.model.named_parameters()
            if tied or "embed_tokens" not in name
        )
    )
