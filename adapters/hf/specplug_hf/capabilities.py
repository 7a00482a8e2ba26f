"""What transformers' models can give to drafters and KV policies."""

from __future__ import annotations

from transformers import PreTrainedModel

from specplug import Need
from specplug_hf.support import takes_registered_attention
from specplug_hf.tokenizer import has_tokenizer

_ALWAYS = frozenset(
    {
        Need.HISTORY,
        Need.TARGET_RUNNER,
        Need.MODEL_RUNNER,
        Need.TARGET_PASS,
        Need.LAYER_SKIPPING,
        Need.HIDDEN_STATES,
        Need.DISTANCES,
    }
)


def capabilities_of(model: PreTrainedModel) -> frozenset[Need]:
    """What can be asked for with `model`. Queries pass through our attention function only where models look theirs up."""
    tokenizer = frozenset({Need.TOKENIZER} if has_tokenizer(model) else ())
    return _ALWAYS | tokenizer | ({Need.QUERIES} if takes_registered_attention(model) else frozenset())
