"""The target's tokenizer, for drafters that look texts up: the one that lies beside the model's weights."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel

from specplug import UnsupportedError

_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt", "spiece.model")


def has_tokenizer(model: PreTrainedModel) -> bool:
    """Whether `model` says where its tokenizer is: in a folder that has one, or by a name that transformers can look up."""
    name = str(model.name_or_path or "")
    folder = Path(name)
    return bool(name) and (not folder.is_dir() or any((folder / file).exists() for file in _FILES))


def tokenize(model: PreTrainedModel, text: str) -> Tensor:
    """The tokens of `text`, no special ones added: [n] int64. Raises `UnsupportedError` if the tokenizer cannot be loaded."""
    tokenizer = _loaded(str(model.name_or_path))
    return torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], dtype=torch.int64)


@lru_cache(maxsize=8)
def _loaded(name: str) -> Any:
    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # whatever transformers and the tokenizer's own code raise
        raise UnsupportedError(
            f"The tokenizer of {name!r} cannot be loaded ({type(error).__name__}: {error}); save it beside the model, or give "
            "a corpus of tokens (.safetensors)."
        ) from error
