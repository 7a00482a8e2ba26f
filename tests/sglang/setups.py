"""The SPECPLUG set-ups that the engines of these tests run, by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

DEMO = Path(__file__).parents[2] / "adapters" / "hf" / "specplug_hf" / "demo"

SETUPS = {
    "none": {"drafter": "none", "controller": "fixed"},
    "lookup": {"drafter": "prompt_lookup", "tree": "chain:length=6", "controller": "fixed"},
    "self-tree": {
        "drafter": "self",
        "kv_policy": "streaming:sink=4,window=28",
        "tree": "kary:branch=2,depth=3",
        "controller": "fixed",
    },
    "self-full": {"drafter": "self", "kv_policy": "full", "tree": "chain:length=4", "controller": "fixed"},
    "model-chain": {"drafter": "model", "tree": "chain:length=4", "controller": "fixed"},
    "model-tree": {"drafter": "model", "tree": "sequoia:size=12,depth=4", "controller": "fixed"},
    "model-window": {
        "drafter": "model",
        "kv_policy": "streaming:sink=2,window=14",
        "tree": "sequoia:size=8,depth=3",
        "controller": "fixed",
    },
    "suffix": {"drafter": "suffix", "tree": "sequoia:size=12,depth=6", "controller": "fixed"},
    "corpus": {"drafter": f"retrieval_corpus:path={DEMO / 'prompts'},pattern=*.txt", "controller": "fixed"},
    "lookahead": {"drafter": "lookahead:window=3,ngram=3,guesses=2", "controller": "fixed"},
    "heads": {"drafter": f"mlp_speculator:path={DEMO / 'mlp_speculator'}", "controller": "fixed"},
    "merged": {"drafter": "merged:parts=suffix+prompt_lookup", "tree": "chain:length=6", "controller": "fixed"},
    "auto": {"controller": "auto"},  # every drafter there is, trees of different sizes from round to round
}


def options(pair: Any, name: str, **more: Any) -> dict[str, Any]:
    """A SPECPLUG engine's options for a set-up; the draft is loaded where it is used."""
    draft = {"speculative_draft_model_path": str(pair.draft)} if name.startswith(("model", "auto")) else {}
    return (
        {"speculative_algorithm": "SPECPLUG", "specplug_config": SETUPS[name], "max_running_requests": 16}
        | draft
        | more
    )


SMOKE = [("auto", False), ("self-tree", True)]  # set-up, and whether without the overlap scheduler
REST = [(name, alone) for name in SETUPS for alone in (False, True) if (name, alone) not in SMOKE]
