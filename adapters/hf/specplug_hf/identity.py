"""What a model's measured times hold for, and how much of it a forward reads."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from specplug.cost.identity import device_name, dtype_name, model_name
from specplug_hf.support import device_of


def name_of(model: PreTrainedModel) -> str:
    """The same wherever it was loaded from: class and sizes."""
    return model_name(type(model).__name__, model.config.get_text_config(decoder=True))


def identity_of(model: PreTrainedModel) -> tuple[str, str, str]:
    """Model, device, dtype."""
    return name_of(model), device_name(device_of(model)), dtype_name(model.dtype)


def weight_bytes(model: PreTrainedModel) -> float:
    """Bytes of weights that a forward reads: all but an embedding of which it looks up a few rows."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    looked_up = getattr(embedding, "weight", None)
    tied = looked_up is None or not isinstance(head, nn.Module) or getattr(head, "weight", None) is looked_up
    skipped = None if tied else looked_up
    return float(sum(p.numel() * p.element_size() for p in model.parameters() if p is not skipped))
