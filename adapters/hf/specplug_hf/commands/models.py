"""The models a command runs: the pair that ships with the package, or whatever paths were given."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel
from transformers.utils import logging

from specplug import OptionError
from specplug_hf.commands.options import ModelOptions

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(slots=True)
class Models:
    """Target, draft (None: no set-up that needs one), tokenizer, and a draft that has learnt nothing."""

    target: PreTrainedModel
    draft: PreTrainedModel | None
    tokenizer: Any
    useless: PreTrainedModel | None
    name: str

    @property
    def max_positions(self) -> int:
        """Most tokens the target takes."""
        return int(getattr(self.target.config.get_text_config(decoder=True), "max_position_embeddings", 0) or 1 << 30)


def load(options: ModelOptions) -> Models:
    """Load what `options` name. Greedy, and no end token: every run writes as many tokens as it was asked for."""
    models = load_as_saved(options)
    models.useless = None if models.draft is None else untrained(models.draft)
    for model in (models.target, models.draft, models.useless):
        if model is not None:
            model.generation_config = _endless(model)
    return models


def load_as_saved(options: ModelOptions) -> Models:
    """Load what `options` name, their generation settings as they are; no useless draft."""
    dtype, device = DTYPES[options.dtype], torch.device(options.device)
    if options.model is None:
        from specplug_hf.demo import load_pair  # noqa: PLC0415  (reads the weights' folder)

        target, draft, tokenizer = load_pair(dtype=dtype, device=device)
        draft = _from_path(options.draft, dtype, device) if options.draft else draft
        name = "built-in pair"
    else:
        target = _from_path(options.model, dtype, device)
        draft = _from_path(options.draft, dtype, device) if options.draft else None
        tokenizer, name = AutoTokenizer.from_pretrained(options.model), options.model
    return Models(target, draft, tokenizer, None, name)


def _from_path(path: str, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    looks_local = path.startswith((".", "/", "~"))
    folder = Path(path).expanduser()
    if looks_local and not folder.is_dir():
        raise OptionError(f"No model folder at {folder}; give a folder in Hugging Face format or a model's name.")
    return AutoModelForCausalLM.from_pretrained(folder if looks_local else path, dtype=dtype).to(device).eval()


def _endless(model: PreTrainedModel) -> GenerationConfig:
    own = model.generation_config
    end = own.eos_token_id
    pad = own.pad_token_id if own.pad_token_id is not None else (end[0] if isinstance(end, list) else end)
    return GenerationConfig(bos_token_id=own.bos_token_id, pad_token_id=0 if pad is None else pad, do_sample=False)


def untrained(draft: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """A model of the same shape with random weights: a draft that is practically never right."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = type(draft)(copy.deepcopy(draft.config))
    return model.to(device=draft.device, dtype=draft.dtype).eval()


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Neither progress bars for small weights nor advice on deprecated arguments from transformers, for a while."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextlib.contextmanager
def generation_settings(model: PreTrainedModel | None, **settings: Any) -> Iterator[None]:
    """`model.generation_config` with other values for a while."""
    if model is None:
        yield
        return
    before = {name: getattr(model.generation_config, name) for name in settings}
    for name, value in settings.items():
        setattr(model.generation_config, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(model.generation_config, name, value)


def synchronize(model: PreTrainedModel) -> None:
    """Wait until the model's device has done what it was asked."""
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
