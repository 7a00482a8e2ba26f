"""Draft runners: the target over a sparse view of its own cache, and another model with a cache of its own."""

from specplug_hf.runners.model import ModelRunner
from specplug_hf.runners.target import SelfRunner

__all__ = ["ModelRunner", "SelfRunner"]
