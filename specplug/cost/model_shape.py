"""What a model's configuration says of its cost: bytes of weights and KV, arithmetic a token and a query-key pair.

Decoder-only models with gated MLPs and multi-head or grouped-query attention over the whole context. Anything else is
refused by the name of the field, since a guess would look like a figure.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specplug.errors import OptionError

# model_type -> whether the embedding is tied to the head where the configuration does not say (transformers' defaults).
FAMILIES = {"llama": False, "mistral": False, "qwen2": False, "qwen3": False, "phi3": False, "gemma": True}
# A layer that is none of ours: fields whose mere presence (with a value) says so, and why.
REFUSED = {
    "num_local_experts": "a mixture of experts reads other weights every step",
    "num_experts": "a mixture of experts reads other weights every step",
    "n_routed_experts": "a mixture of experts reads other weights every step",
    "kv_lora_rank": "latent attention keeps another cache",
    "quantization_config": "the bytes a weight takes differ by layer",
    "text_config": "give the text model's own configuration",
}
BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A decoder's dimensions. `weight_bytes`, `kv_bytes`: bytes of one weight and of one cached element.

    `vectors`: parameters of norms and biases, all layers together: read every step, no arithmetic worth counting.
    """

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied: bool = False
    weight_bytes: float = 2.0
    kv_bytes: float = 2.0
    vectors: int = 0

    def __post_init__(self) -> None:
        for field in ("layers", "hidden", "heads", "kv_heads", "head_dim", "intermediate", "vocab"):
            if getattr(self, field) < 1:
                raise OptionError(f"{self.name}: {field} is {getattr(self, field)}; it must be at least 1.")
        if self.heads % self.kv_heads:
            raise OptionError(f"{self.name}: {self.heads} query heads do not divide among {self.kv_heads} KV heads.")

    @classmethod
    def from_config(cls, config: Mapping[str, Any] | str | Path, name: str = "") -> ModelShape:
        """Read a Hugging Face `config.json` (a path to it or to its folder) or its contents.

        Raises `OptionError` naming the field that is missing or that this model of cost does not cover.
        """
        if not isinstance(config, Mapping):
            path = Path(config)
            return cls.from_config(_read(path), name or str(path))
        name = name or str(config.get("_name_or_path") or config.get("model_type") or "model")
        family = _family(config, name)
        hidden, heads = _whole(config, "hidden_size", name), _whole(config, "num_attention_heads", name)
        layers, kv_heads = _whole(config, "num_hidden_layers", name), _whole(config, "num_key_value_heads", name, heads)
        head_dim = _whole(config, "head_dim", name, hidden // heads)
        element = _bytes(config, name)
        tied = config.get("tie_word_embeddings")
        return cls(
            name=name,
            layers=layers,
            hidden=hidden,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            intermediate=_whole(config, "intermediate_size", name),
            vocab=_whole(config, "vocab_size", name),
            tied=FAMILIES[family] if tied is None else bool(tied),
            weight_bytes=element,
            kv_bytes=element,
            vectors=hidden + layers * (2 * hidden + _extra(family, heads, kv_heads, head_dim)),
        )

    @property
    def linear_weights(self) -> int:
        """Weights of the matrices that every token goes through: attention's four, the MLP's three, the head."""
        attention = self.hidden * self.head_dim * 2 * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate) + self.hidden * self.vocab

    @property
    def parameters(self) -> int:
        """All parameters; a tied embedding counts once."""
        return self.linear_weights + self.vectors + (0 if self.tied else self.vocab * self.hidden)

    @property
    def stored_bytes(self) -> float:
        """Bytes that the weights take on the device."""
        return self.parameters * self.weight_bytes

    @property
    def step_bytes(self) -> float:
        """Bytes of weights that a forward reads whatever its tokens: all but the embedding table."""
        return (self.linear_weights + self.vectors) * self.weight_bytes

    @property
    def row_bytes(self) -> float:
        """Bytes of the embedding row that each token reads."""
        return self.hidden * self.weight_bytes

    @property
    def kv_bytes_per_token(self) -> float:
        """Bytes of keys and values that one token leaves in the cache."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.kv_bytes

    @property
    def linear_flops(self) -> float:
        """Floating-point operations of the matrices for one token: a multiplication and an addition a weight."""
        return 2.0 * self.linear_weights

    @property
    def attention_flops(self) -> float:
        """Floating-point operations of one query-key pair: scores and weighted values, all heads and layers."""
        return 4.0 * self.layers * self.heads * self.head_dim


def _read(path: Path) -> dict[str, Any]:
    file = path / "config.json" if path.is_dir() else path
    try:
        config = json.loads(file.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise OptionError(f"Cannot read the model configuration {file}: {error}") from error
    if not isinstance(config, dict):
        raise OptionError(f"{file} holds no model configuration: it must be a JSON object.")
    return config


def _family(config: Mapping[str, Any], name: str) -> str:
    for field, reason in REFUSED.items():
        if config.get(field):
            raise OptionError(f"{name}: {field} is set, which this cost model does not cover: {reason}.")
    # Qwen2's configurations carry a window that is switched off
    if config.get("sliding_window") and config.get("use_sliding_window", True):
        raise OptionError(f"{name}: sliding_window={config['sliding_window']} bounds what is read; not covered.")
    odd = sorted(set(config.get("layer_types") or ()) - {"full_attention"})
    if odd:
        raise OptionError(f"{name}: layer_types has {', '.join(map(str, odd))}; only full_attention is covered.")
    family = config.get("model_type")
    if family not in FAMILIES:
        raise OptionError(f"{name}: model_type {family!r} is not covered. Covered: {', '.join(sorted(FAMILIES))}.")
    return str(family)


def _whole(config: Mapping[str, Any], field: str, name: str, default: int | None = None) -> int:
    value = config.get(field)
    value = default if value is None else value
    if value is None:
        raise OptionError(f"{name}: the configuration has no {field}.")
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise OptionError(f"{name}: {field} is {value!r}; it must be a positive whole number.")
    return value


def _bytes(config: Mapping[str, Any], name: str) -> float:
    kind = config.get("dtype") or config.get("torch_dtype")
    if kind not in BYTES:
        raise OptionError(f"{name}: dtype (torch_dtype) is {kind!r}; it must be one of {', '.join(BYTES)}.")
    return BYTES[str(kind)]


def _extra(family: str, heads: int, kv_heads: int, head_dim: int) -> int:
    """Norm weights and biases of one layer's attention, by family."""
    if family == "qwen2":
        return (heads + 2 * kv_heads) * head_dim
    return 2 * head_dim if family == "qwen3" else 0
