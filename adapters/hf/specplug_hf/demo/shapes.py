"""The two models' shapes."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import LlamaConfig

from .corpus import VOCAB

POSITIONS = 16384


@dataclass(frozen=True, slots=True)
class Shape:
    """A Llama's size: layers, hidden width, inner width of the MLP, query heads, key-value heads, positions."""

    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    positions: int = POSITIONS

    def config(self, layers: int | None = None, vocab: int = VOCAB) -> LlamaConfig:
        """The Hugging Face configuration, with `layers` layers where given."""
        return LlamaConfig(
            vocab_size=vocab,
            hidden_size=self.hidden,
            intermediate_size=self.inner,
            num_hidden_layers=layers or self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            max_position_embeddings=self.positions,
            tie_word_embeddings=True,
            rope_theta=1e5,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=0,
        )


# The draft has a tenth of the target's parameters, output head counted in both. Two layers: one cannot copy from context.
TARGET = Shape(layers=8, hidden=256, inner=704, heads=8, kv_heads=2)
DRAFT = Shape(layers=2, hidden=128, inner=192, heads=4, kv_heads=2)
