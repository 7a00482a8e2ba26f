"""Models and devices by name.

Models: the fields of their public `config.json`. Devices: `memory` as the driver reports it (a little under the
name's gigabytes); bandwidth and 16-bit dense arithmetic (fp32 accumulation, no sparsity) are the makers' specification
sheets', except `h200`, whose figures are what is reached in practice (4.3 of 4.8 TB/s, 790 of 989 TFLOP/s).
`interconnect` is NVLink's (PCIe's where there is none), one direction, specification.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from specplug.cost.device import Device
from specplug.cost.model_shape import ModelShape
from specplug.errors import unknown_name

GIB = 2.0**30


def _config(family: str, layers: int, hidden: int, heads: tuple[int, int, int], mlp: int, vocab: int) -> dict[str, Any]:
    return {
        "model_type": family,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "head_dim": heads[2],
        "intermediate_size": mlp,
        "vocab_size": vocab,
        "dtype": "bfloat16",
    }


_TIED = {"tie_word_embeddings": True}
# name: family, layers, hidden, (query heads, KV heads, head dimension), MLP, vocabulary
MODELS: dict[str, dict[str, Any]] = {
    "llama-2-7b": _config("llama", 32, 4096, (32, 32, 128), 11008, 32000),
    "llama-2-13b": _config("llama", 40, 5120, (40, 40, 128), 13824, 32000),
    "llama-2-70b": _config("llama", 80, 8192, (64, 8, 128), 28672, 32000),
    "llama-3.1-8b": _config("llama", 32, 4096, (32, 8, 128), 14336, 128256),
    "llama-3.1-70b": _config("llama", 80, 8192, (64, 8, 128), 28672, 128256),
    "llama-3.2-1b": _config("llama", 16, 2048, (32, 8, 64), 8192, 128256) | _TIED,
    "llama-3.2-3b": _config("llama", 28, 3072, (24, 8, 128), 8192, 128256) | _TIED,
    "tinyllama-1.1b": _config("llama", 22, 2048, (32, 4, 64), 5632, 32000),
    "mistral-7b-v0.3": _config("mistral", 32, 4096, (32, 8, 128), 14336, 32768),
    "qwen2.5-0.5b": _config("qwen2", 24, 896, (14, 2, 64), 4864, 151936) | _TIED,
    "qwen2.5-1.5b": _config("qwen2", 28, 1536, (12, 2, 128), 8960, 151936) | _TIED,
    "qwen2.5-7b": _config("qwen2", 28, 3584, (28, 4, 128), 18944, 152064),
    "qwen2.5-14b": _config("qwen2", 48, 5120, (40, 8, 128), 13824, 152064),
    "qwen2.5-32b": _config("qwen2", 64, 5120, (40, 8, 128), 27648, 152064),
    "qwen2.5-72b": _config("qwen2", 80, 8192, (64, 8, 128), 29568, 152064),
    "qwen3-0.6b": _config("qwen3", 28, 1024, (16, 8, 128), 3072, 151936) | _TIED,
    "qwen3-1.7b": _config("qwen3", 28, 2048, (16, 8, 128), 6144, 151936) | _TIED,
    "qwen3-4b": _config("qwen3", 36, 2560, (32, 8, 128), 9728, 151936) | _TIED,
    "qwen3-8b": _config("qwen3", 36, 4096, (32, 8, 128), 12288, 151936),
    "qwen3-14b": _config("qwen3", 40, 5120, (40, 8, 128), 17408, 151936),
    "qwen3-32b": _config("qwen3", 64, 5120, (64, 8, 128), 25600, 151936),
}

_DEVICES = (
    Device("h200", memory=139.8 * GIB, bandwidth=4.3e12, flops=790e12, interconnect=450e9),
    Device("h100", memory=79.1 * GIB, bandwidth=3.35e12, flops=989e12, interconnect=450e9),
    Device("a100-80gb", memory=79.1 * GIB, bandwidth=2.039e12, flops=312e12, interconnect=300e9),
    Device("a100-40gb", memory=39.4 * GIB, bandwidth=1.555e12, flops=312e12, interconnect=300e9),
    Device("l40s", memory=44.4 * GIB, bandwidth=0.864e12, flops=362e12, interconnect=32e9),
    Device("l4", memory=22.0 * GIB, bandwidth=0.3e12, flops=121e12, interconnect=32e9),
    Device("rtx-4090", memory=23.6 * GIB, bandwidth=1.008e12, flops=165e12, interconnect=32e9),
    Device("rtx-3090", memory=23.6 * GIB, bandwidth=0.936e12, flops=71e12, interconnect=32e9),
)
DEVICES = {device.name: device for device in _DEVICES}


def model_shape(name: str) -> ModelShape:
    """A named model, or the configuration at a path (a file, or a folder that has a `config.json`)."""
    if name in MODELS:
        return ModelShape.from_config(MODELS[name], name)
    if "/" in name or name.endswith(".json") or Path(name).exists():
        return ModelShape.from_config(Path(name), name)
    raise unknown_name("model (or path of a configuration)", name, MODELS)


def device(name: str, count: int = 1) -> Device:
    """A named device, or the one described by a JSON file; `count` of them."""
    if name in DEVICES:
        found = DEVICES[name]
    elif "/" in name or name.endswith(".json"):
        found = Device.from_file(name)
    else:
        raise unknown_name("device (or path of a JSON file)", name, DEVICES)
    return found if count == found.count else found.times(count)
