"""The draft to distil: loaded, checked against the target's vocabulary, saved."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from specplug.errors import OptionError, UnsupportedError
from specplug_hf.draft import check_vocabularies
from specplug_hf.support import check_architecture

BUILTIN_DRAFT = "builtin-draft"


def load_draft(name: str, device: torch.device) -> tuple[PreTrainedModel, torch.dtype]:
    """The model of the folder (or known by the name) `name` in float32, in eval mode, and the dtype of its file."""
    place = folder_of(name)
    try:
        model = AutoModelForCausalLM.from_pretrained(place, dtype="auto", use_safetensors=True)
    except (OSError, ValueError) as error:
        raise OptionError(f"--draft {name}: cannot be loaded: {error}") from error
    check_architecture(model, role="draft")
    dtype: torch.dtype = model.dtype
    return model.to(device=device, dtype=torch.float32).eval(), dtype


def folder_of(name: str) -> str:
    """Where `name` is loaded from."""
    if name != BUILTIN_DRAFT:
        return str(Path(name).expanduser()) if name.startswith("~") else name
    from specplug_hf.demo.pair import DRAFT_FOLDER  # noqa: PLC0415  (imports this package)

    return str(DRAFT_FOLDER)


def common_vocabulary(name: str, draft: PreTrainedModel, target: PreTrainedModel, tokenizer: Any) -> int:
    """How many tokens both models know. `UnsupportedError` names the draft `name` if its vocabulary is another one."""
    sizes = [model.config.get_text_config(decoder=True).vocab_size for model in (target, draft)]
    try:
        check_vocabularies(*sizes)
    except UnsupportedError as error:
        raise UnsupportedError(f"--draft {name}: {error}") from error
    try:
        own = AutoTokenizer.from_pretrained(folder_of(name)).get_vocab()
    except (OSError, ValueError):
        return min(sizes)  # no tokenizer beside the model: the sizes are all there is to compare
    theirs = tokenizer.get_vocab()
    for token in sorted(theirs, key=lambda token: int(theirs[token])):
        if own.get(token) != theirs[token]:
            here = "no token" if token not in own else f"token {own[token]}"
            raise UnsupportedError(
                f"--draft {name}: its vocabulary is not the target's: {token!r} is token {theirs[token]} of the target and "
                f"{here} of the draft. Use a draft with the target's tokenizer."
            )
    return min(sizes)


def save_draft(model: PreTrainedModel, dtype: torch.dtype, tokenizer: Any, folder: Path) -> None:
    """Write `model` in `dtype` and `tokenizer` to `folder` in Hugging Face format; `model` stays as it is."""
    copy.deepcopy(model).to(dtype).save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
