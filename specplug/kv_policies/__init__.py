"""KV policies: what part of the cache a draft reads. One method a file."""

from specplug.kv_policies.base import KVPolicy, KVSelection, check_policy
from specplug.kv_policies.full import Full
from specplug.kv_policies.streaming import Streaming

__all__ = ["Full", "KVPolicy", "KVSelection", "Streaming", "check_policy"]
