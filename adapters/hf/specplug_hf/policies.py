"""Whether what a KV policy asks for can be laid out for a model."""

from __future__ import annotations

from transformers import PreTrainedModel

from specplug import UnsupportedError
from specplug.kv_policies import ChoosingPolicy, KVPolicy
from specplug_hf.rotation import rotation_of
from specplug_hf.support import takes_registered_attention
from specplug_hf.views import RingView, view_of


def check_policy_fits(policy: KVPolicy, model: PreTrainedModel) -> None:
    """Raise `UnsupportedError` unless `model` can draft over what `policy` selects of its cache."""
    view = view_of(policy)
    if isinstance(view, RingView) and view.reach is not None:
        rotation_of(model)
    if isinstance(policy, ChoosingPolicy) and not takes_registered_attention(model):
        raise UnsupportedError(
            f"KV policy {type(policy).__name__} needs the queries of {type(model).__name__}, whose attention cannot be "
            "registered; use kv_policy='streaming'."
        )
