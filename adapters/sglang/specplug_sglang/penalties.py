"""Frequency, presence and repetition penalties and min_new_tokens at every tree node, with the node's own prefix.

SGLang's own verification applies the root's penalties to all nodes; a node's law would then not be what plain decoding has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from specplug import TreeBatch


def needed(reqs: Sequence[Any], outputs: Sequence[int]) -> bool:
    """Whether any request has a penalty, or stop tokens that are still forbidden after `outputs[b]` tokens."""
    return any(
        p.frequency_penalty or p.presence_penalty or p.repetition_penalty != 1.0 or done < p.min_new_tokens
        for p, done in zip((req.sampling_params for req in reqs), outputs, strict=True)
    )


def apply(logits: Tensor, reqs: Sequence[Any], written: Sequence[Sequence[int]], trees: TreeBatch) -> Tensor:
    """`logits` [B, N, V] penalised; `written[b]`: the tokens that row b has generated, the root included. A new tensor."""
    counts = node_counts(written, trees, logits.shape[-1])
    params = [req.sampling_params for req in reqs]
    frequency = _column([p.frequency_penalty for p in params], logits)
    presence = _column([p.presence_penalty for p in params], logits)
    repetition = _column([p.repetition_penalty for p in params], logits)
    seen = counts > 0
    logits = logits - frequency * counts - presence * seen
    scaled = torch.where(logits < 0, logits * repetition, logits / repetition)
    logits = torch.where(seen, scaled, logits)
    return _without_early_stops(logits, reqs, written, trees)


def node_counts(written: Sequence[Sequence[int]], trees: TreeBatch, vocab_size: int) -> Tensor:
    """How often each token stands before the token that a node's law is for: [B, N, V] float32."""
    rows, nodes = trees.tokens.shape
    device = trees.tokens.device
    longest = max(len(tokens) for tokens in written)
    padded = torch.tensor([[*tokens, *[vocab_size] * (longest - len(tokens))] for tokens in written], device=device)
    base = torch.zeros((rows, vocab_size + 1), device=device).scatter_add_(1, padded, torch.ones_like(padded).float())
    counts = base[:, None, :vocab_size].repeat(1, nodes, 1)
    lineage = trees.ancestors.expand(rows, -1, -1)[:, :, 1:].float()  # without the root: it has been written
    tokens = trees.tokens[:, None, 1:].clamp(0, vocab_size - 1).expand(-1, nodes, -1)
    return counts.scatter_add_(2, tokens, lineage)


def _without_early_stops(
    logits: Tensor, reqs: Sequence[Any], written: Sequence[Sequence[int]], trees: TreeBatch
) -> Tensor:
    depths = trees.depths.expand(len(reqs), -1)
    for row, req in enumerate(reqs):
        missing = req.sampling_params.min_new_tokens - len(written[row])
        stops = sorted(t for t in stop_tokens(req) if 0 <= t < logits.shape[-1])
        if missing > 0 and stops:
            early = (depths[row] < missing).nonzero()
            logits[row, early, torch.tensor(stops, device=logits.device)] = float("-inf")
    return logits


def stop_tokens(req: Any) -> set[int]:
    """Every token that may end a request, as SGLang's min_new_tokens forbids them."""
    tokenizer = req.tokenizer
    known = set(req.sampling_params.stop_token_ids or ()) | set(req.eos_token_ids or ())
    if tokenizer is not None:
        known |= set(getattr(tokenizer, "additional_stop_token_ids", None) or ())
        known |= {tokenizer.eos_token_id}
    return {token for token in known if token is not None}


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=like.device)[:, None, None]
