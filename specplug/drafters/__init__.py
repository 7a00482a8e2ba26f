"""Drafters: what proposes tokens. One method a file."""

from specplug.drafters.base import Drafter, DraftRequest
from specplug.drafters.expand import expand
from specplug.drafters.layer_skip import LayerSkip
from specplug.drafters.lookahead import Lookahead
from specplug.drafters.merged import Merged
from specplug.drafters.mlp_speculator import MLPSpeculator
from specplug.drafters.model import ModelDraft
from specplug.drafters.none import NoDraft
from specplug.drafters.prompt_lookup import PromptLookup
from specplug.drafters.retrieval_corpus import RetrievalCorpus
from specplug.drafters.self_draft import SelfDraft
from specplug.drafters.suffix import Suffix

__all__ = [
    "DraftRequest",
    "Drafter",
    "LayerSkip",
    "Lookahead",
    "MLPSpeculator",
    "Merged",
    "ModelDraft",
    "NoDraft",
    "PromptLookup",
    "RetrievalCorpus",
    "SelfDraft",
    "Suffix",
    "expand",
]
