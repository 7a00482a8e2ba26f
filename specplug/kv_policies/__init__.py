"""KV policies: what part of the cache a draft reads. One method a file."""

from specplug.kv_policies.base import Chooser, ChoosingPolicy, KVPolicy, KVSelection, LayerContext, check_policy
from specplug.kv_policies.full import Full
from specplug.kv_policies.kvpress import KVPress
from specplug.kv_policies.lambda_mask import Lambda
from specplug.kv_policies.retrieval import Retrieval
from specplug.kv_policies.snapkv import SnapKV
from specplug.kv_policies.squeezed import Squeezed
from specplug.kv_policies.streaming import Streaming

__all__ = [
    "Chooser",
    "ChoosingPolicy",
    "Full",
    "KVPolicy",
    "KVPress",
    "KVSelection",
    "Lambda",
    "LayerContext",
    "Retrieval",
    "SnapKV",
    "Squeezed",
    "Streaming",
    "check_policy",
]
