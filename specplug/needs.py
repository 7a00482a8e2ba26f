"""What a method may ask of a framework."""

from __future__ import annotations

from enum import StrEnum


class Need(StrEnum):
    """What a method may ask of a host; declared at set-up, refused by name where the host lacks it."""

    HISTORY = "history"  # committed token ids (Batch.history)
    TOKENIZER = "tokenizer"  # the target's own (Host.tokenize)
    TARGET_RUNNER = "target_runner"  # the target drafting over a sparse view of its own cache
    MODEL_RUNNER = "model_runner"  # another model beside the target
    LAYER_SKIPPING = "layer_skipping"  # the target drafting with some of its layers left out
    HIDDEN_STATES = "hidden_states"  # of the node that sampled the bonus token, also after prefill (Batch.hidden)
    QUERIES = "queries"  # the last committed queries of every layer, beside its keys: for policies that choose by them
    DISTANCES = "distances"  # keys read as if they stood elsewhere (KVSelection.reach)
    TARGET_PASS = "target_pass"  # logits of all verified nodes go back to the drafter (Round.logits)
