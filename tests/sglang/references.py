"""What the engine must say: transformers' own answers on the built-in target, and prompts of unequal lengths."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

DEMO = Path(__file__).parents[2] / "adapters" / "hf" / "specplug_hf" / "demo"


@lru_cache(maxsize=1)
def target() -> Any:
    """The built-in target in transformers, float32."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(DEMO / "target", dtype=torch.float32).eval()


@lru_cache(maxsize=1)
def tokenizer() -> Any:
    """The pair's tokenizer."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(DEMO / "target")


@lru_cache(maxsize=1)
def texts() -> list[list[int]]:
    """The held-out texts that ship with the pair, as token ids."""
    return [tokenizer()(path.read_text())["input_ids"] for path in sorted((DEMO / "prompts").glob("*.txt"))]


def prompts(count: int, shortest: int = 3, longest: int = 160) -> list[list[int]]:
    """`count` prompts, lengths spread from `shortest` to `longest`, each from another place of the texts."""
    step = (longest - shortest) / max(1, count - 1)
    return [texts()[i % len(texts())][40 * i :][: round(shortest + step * ((7 * i) % count))] for i in range(count)]


@torch.no_grad()
def greedy(prompt: list[int], new_tokens: int, **options: Any) -> list[int]:
    """What transformers' greedy `generate` goes on with."""
    ids = torch.tensor([prompt])
    known = dict(max_new_tokens=new_tokens, do_sample=False, eos_token_id=None, pad_token_id=0)
    return target().generate(ids, attention_mask=torch.ones_like(ids), **known | options)[0, len(prompt) :].tolist()
