"""Drafters: what proposes tokens. One method a file."""

from specplug.drafters.base import Drafter, DraftRequest
from specplug.drafters.expand import expand
from specplug.drafters.model import ModelDraft
from specplug.drafters.none import NoDraft
from specplug.drafters.prompt_lookup import PromptLookup
from specplug.drafters.self_draft import SelfDraft

__all__ = ["DraftRequest", "Drafter", "ModelDraft", "NoDraft", "PromptLookup", "SelfDraft", "expand"]
