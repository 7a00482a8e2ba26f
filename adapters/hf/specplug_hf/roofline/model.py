"""A model of a given shape with random weights, made where it runs: nothing is downloaded and nothing copied."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from specplug import OptionError
from specplug.cost.model_shape import ModelShape
from specplug.cost.presets import MODELS
from specplug.errors import unknown_name
from specplug_hf.commands.models import DTYPES

POSITIONS = 2**17  # of a named shape, none of which says how many it has


def configuration(name: str, dtype: str) -> dict[str, Any]:
    """The fields of a named shape, or of the `config.json` at a path (a file or its folder), in `dtype`."""
    path = Path(name).expanduser()
    if name in MODELS:
        return {"max_position_embeddings": POSITIONS, **MODELS[name], "dtype": dtype}
    if not path.exists():
        raise unknown_name("model (or path of a configuration)", name, MODELS)
    file = path / "config.json" if path.is_dir() else path
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise OptionError(f"Cannot read the model configuration {file}: {error}") from error
    if not isinstance(fields, dict):
        raise OptionError(f"{file} holds no model configuration: it must be a JSON object.")
    return fields | {"dtype": dtype}


def shape_of(fields: dict[str, Any], name: str) -> ModelShape:
    """What the roofline knows of the model. Raises `OptionError` for one that it does not cover."""
    return ModelShape.from_config(fields, name)


def random_model(fields: dict[str, Any], device: torch.device) -> PreTrainedModel:
    """The model in eval mode on `device`, weights drawn as transformers draws them; greedy, and no token ends a row.

    All of its layers attend to everything, since that is what the roofline computes.
    """
    named = {key: value for key, value in fields.items() if key not in ("model_type", "dtype", "sliding_window")}
    config = AutoConfig.for_model(fields["model_type"], **named)
    if getattr(config, "sliding_window", None) is not None:
        config.sliding_window = None
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=DTYPES[str(fields["dtype"])])
    model.generation_config = GenerationConfig(pad_token_id=0, do_sample=False)
    return model.eval()
