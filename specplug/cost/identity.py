"""What measured times hold for: names of a model, a device and a type that are the same wherever the model was loaded from."""

from __future__ import annotations

import platform
from functools import lru_cache
from typing import Any

import torch

SIZES = ("num_hidden_layers", "hidden_size", "intermediate_size")


def model_name(architecture: str, config: Any) -> str:
    """The architecture's class and its sizes, from a Hugging Face configuration: layers x hidden x intermediate, heads, vocabulary.

    Two fine-tunes of one model have one name: they take the same time.
    """
    sizes = "x".join(str(value) for name in SIZES if (value := getattr(config, name, None)) is not None)
    heads = getattr(config, "num_attention_heads", None)
    groups = getattr(config, "num_key_value_heads", None) or heads
    named = [architecture, sizes, f"h{heads}.{groups}" if heads else "", f"v{getattr(config, 'vocab_size', '')}"]
    return "-".join(part for part in named if part)


def device_name(device: torch.device) -> str:
    """The accelerator's own name, or "cpu" and the processor's."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"{device.type} {processor()}".strip() if device.type == "cpu" else device.type


def dtype_name(dtype: torch.dtype) -> str:
    """Such as "bfloat16"."""
    return str(dtype).removeprefix("torch.")


@lru_cache(maxsize=1)
def processor() -> str:
    """The processor's name, as far as the system tells."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
