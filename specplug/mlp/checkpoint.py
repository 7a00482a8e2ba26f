"""Heads on disk, as IBM publishes them: `config.json`, and safetensors with names such as `speculator.emb.0.weight`."""

from __future__ import annotations

import copy
import json
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from specplug.errors import OptionError
from specplug.mlp.config import CONFIG, HeadsConfig
from specplug.mlp.heads import Heads

PREFIX = "speculator."
WEIGHTS = "model.safetensors"
MISSING = "mlp_speculator: weights are read with safetensors, which is not installed: pip install safetensors"


def read_heads(
    folder: Path, config: HeadsConfig, vocab_size: int, device: torch.device, dtype: torch.dtype | None = None
) -> Heads:
    """The heads in `folder` for a target of `vocab_size` tokens, on `device`, in `dtype` (None: as saved), to draft with.

    `OptionError` names the tensor that is missing, or that has another shape than `config` and the target need. Of tensors
    that are tied one is enough.
    """
    with torch.device("meta"):
        heads = Heads(replace(config, vocab_size=vocab_size))
    with ExitStack() as stack:
        saved = _opened(folder, stack)
        read: dict[str, Tensor] = {}
        for name, parameter in heads.named_parameters():
            names = [f"{PREFIX}{alias}" for alias in _aliases(name, config) if f"{PREFIX}{alias}" in saved]
            needed = list(parameter.shape)
            if not names:
                raise OptionError(f"{folder}: tensor {PREFIX}{name} is missing; it has shape {needed}.")
            found = list(saved[names[0]].get_slice(names[0]).get_shape())
            if found != needed:
                raise OptionError(f"{folder}: {_mismatch(names[0], found, needed)}")
            tensor = saved[names[0]].get_tensor(names[0]).to(device=device, dtype=dtype)
            read |= dict.fromkeys(_aliases(name, config), tensor)
    heads.load_state_dict(read, assign=True)
    return heads.requires_grad_(False).eval()


def placed(heads: Heads, vocab_size: int, device: torch.device, dtype: torch.dtype) -> Heads:
    """A copy of `heads` for a target of `vocab_size` tokens, on `device`, in `dtype`, to draft with. `OptionError` as above."""
    config = heads.config
    if vocab_size != config.vocab_size:
        found, needed = [config.vocab_size, config.width], [vocab_size, config.width]
        raise OptionError(f"mlp_speculator: {_mismatch(f'{PREFIX}emb.0.weight', found, needed)}")
    return copy.deepcopy(heads).to(device=device, dtype=dtype).requires_grad_(False).eval()


def check_hidden(config: HeadsConfig, hidden_size: int) -> None:
    """Raise `OptionError`, naming the tensor, unless the heads were made for a target of `hidden_size`."""
    if hidden_size != config.emb_dim:
        found, needed = [config.width, config.emb_dim], [config.width, hidden_size]
        raise OptionError(f"mlp_speculator: {_mismatch(f'{PREFIX}proj.0.weight', found, needed)}")


def save_heads(heads: Heads, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Write `heads` to `folder` in the published format, tensors in `dtype` (None: their own); tied ones once."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"{PREFIX}{name}": p.detach().to(device="cpu", dtype=dtype).contiguous() for name, p in heads.named_parameters()
    }
    try:
        from safetensors.torch import save_file  # noqa: PLC0415  (only those who use heads need it)
    except ImportError as error:
        raise OptionError(MISSING) from error
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    text = json.dumps(heads.config.as_json(), indent=2) + "\n"
    (folder / CONFIG).write_text(text, encoding="utf-8")


def _opened(folder: Path, stack: ExitStack) -> dict[str, Any]:
    """The open file that holds each tensor of `folder`, by the tensor's name."""
    try:
        from safetensors import SafetensorError, safe_open  # noqa: PLC0415  (only those who use heads need it)
    except ImportError as error:
        raise OptionError(MISSING) from error
    files: dict[str, Any] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            opened = stack.enter_context(safe_open(path, framework="pt", device="cpu"))
        except (OSError, SafetensorError) as error:
            raise OptionError(f"mlp_speculator: cannot read {path}: {error}") from error
        files |= dict.fromkeys(opened.keys(), opened)
    if not files:
        raise OptionError(f"mlp_speculator: no *.safetensors in {folder}; other formats are not read.")
    return files


def _aliases(name: str, config: HeadsConfig) -> list[str]:
    """The names that share a tensor with `name` (`emb.0.weight`), itself first."""
    kind, place, tensor = name.split(".")
    if not config.tie_weights or (kind, place) == ("proj", "0"):
        return [name]
    return [f"{kind}.{i}.{tensor}" for i in range(int(place), config.n_predict)]


def _mismatch(name: str, found: list[int], needed: list[int]) -> str:
    return (
        f"tensor {name} has shape {found}; config.json and the target's vocabulary and hidden size need {needed}. Give heads "
        "that were trained for this target."
    )
