"""Plugins of ours that must be given something: a corpus, heads, a package that may not be there."""

from __future__ import annotations

import importlib.util
import json
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from specplug.corpus.files import write_tokens
from specplug.drafters import MLPSpeculator, RetrievalCorpus
from specplug.kv_policies import KVPress
from specplug.mlp import Heads, HeadsConfig
from specplug_conformance.check import Skipped

WIDTH = 8  # of a hidden state, where the draft does not say: heads are not used there


def corpus(vocab: int) -> RetrievalCorpus:
    """Over a short random text of tokens, whose continuations are often wrong, and with trees of many branches."""
    return RetrievalCorpus(str(_corpus_file(vocab)), min_probability=0.05, per_match=16)


@lru_cache(maxsize=8)
def _corpus_file(vocab: int) -> Path:
    folder = tempfile.mkdtemp(prefix="specplug-corpus-")
    tokens = torch.randint(vocab, (400,), generator=torch.Generator().manual_seed(vocab))
    file = Path(folder) / "corpus.safetensors"
    write_tokens(str(file), [tokens])
    return file


def heads(draft: Any, vocab: int) -> MLPSpeculator:
    """Random heads as wide as the draft's hidden states; target and draft of a world are of one size."""
    made = Heads(HeadsConfig(vocab, _width(draft), inner_dim=16, n_predict=3))
    made.initialise(torch.Generator().manual_seed(0))
    return MLPSpeculator(heads=made)


def _width(draft: Any) -> int:
    """Of the hidden states of `draft`, a model or its folder."""
    if isinstance(draft, str):
        return int(json.loads((Path(draft) / "config.json").read_text())["hidden_size"])
    return int(getattr(getattr(draft, "config", None), "hidden_size", WIDTH))


def kvpress() -> KVPress:
    """The bridge, where the package it leads to is installed."""
    if importlib.util.find_spec("kvpress") is None:
        raise Skipped("kvpress is not installed")
    return KVPress(budget=8, window=4)
