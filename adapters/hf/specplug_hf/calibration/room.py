"""Whether a batch's keys and values fit into the memory that is free."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

COPIES = 2.5  # transformers' cache and ours while one is taken over, and masks


def free_bytes(device: torch.device) -> float:
    """Free memory of the device, or of the machine; infinite where nobody says."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo", encoding="utf-8") as lines:
            return next(float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return float("inf")


def kv_bytes(model: PreTrainedModel) -> float:
    """Bytes of one token's keys and values over all layers, by the model's configuration."""
    config: Any = model.config.get_text_config(decoder=True)
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    return float(2 * config.num_hidden_layers * groups * width * model.dtype.itemsize)


def too_large(tokens: int, bytes_a_token: float, device: torch.device) -> str | None:
    """Why a batch of so many tokens is not tried, if it is not."""
    needed, free = COPIES * tokens * bytes_a_token, free_bytes(device)
    return None if needed < free else f"needs about {needed / 2**30:.3g} GiB of memory, {free / 2**30:.3g} GiB are free"
