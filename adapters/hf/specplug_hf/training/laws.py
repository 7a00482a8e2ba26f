"""What a model holds for probable at the places of a text."""

from __future__ import annotations

from torch import Tensor
from transformers import PreTrainedModel

from specplug_hf.training.hardware import precision


def laws(model: PreTrainedModel, ids: Tensor, last: int, vocab: int) -> Tensor:
    """Log-probabilities [B, last, vocab] float32 of the last `last` tokens of `ids` [B, T], over the first `vocab` tokens.

    Checkpoints pad their vocabularies: tokens from `vocab` on are taken for impossible.
    """
    with precision(ids.device):
        logits = model(input_ids=ids, use_cache=False, logits_to_keep=last + 1).logits[:, -last - 1 : -1]
    return logits[..., :vocab].float().log_softmax(-1)
