"""KV policies: what part of the cache a draft reads. One method a file."""

from specplug.kv_policies.base import Chooser, ChoosingPolicy, KVPolicy, KVSelection, LayerContext, check_policy
from specplug.kv_policies.full import Full
from specplug.kv_policies.streaming import Streaming

__all__ = ["Chooser", "ChoosingPolicy", "Full", "KVPolicy", "KVSelection", "LayerContext", "Streaming", "check_policy"]
