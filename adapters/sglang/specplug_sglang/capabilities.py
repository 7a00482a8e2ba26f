"""What a drafter can have of SGLang. Left out: layers skipped, and whatever needs a selection by layer or head."""

from __future__ import annotations

from specplug import Need

OFFERED = frozenset(
    {Need.HISTORY, Need.TARGET_RUNNER, Need.MODEL_RUNNER, Need.TARGET_PASS, Need.HIDDEN_STATES, Need.TOKENIZER}
)
