"""The toy framework's processors: what a request does to the scores behind a prefix."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from specplug_conformance.request import Request


def processed(scores: Tensor, tokens: Sequence[int], request: Request) -> Tensor:
    """`scores` [V] behind `tokens`, after everything that `request` asks for: float64."""
    scores = scores.double()
    if request.repetition_penalty != 1.0:
        seen = torch.tensor(sorted(set(tokens)))
        penalised = scores[seen]
        scores = scores.clone()
        scores[seen] = torch.where(
            penalised < 0, penalised * request.repetition_penalty, penalised / request.repetition_penalty
        )
    if request.rule is not None:
        scores = scores + request.rule(tokens)
    return warped(scores, request) if request.seeds is not None else scores


def warped(scores: Tensor, request: Request) -> Tensor:
    """Temperature, top-k and top-p on `scores` [..., V]: what needs no prefix."""
    scores = scores / request.temperature
    if 0 < request.top_k < scores.shape[-1]:
        scores = scores.masked_fill(scores < scores.topk(request.top_k).values[..., -1:], float("-inf"))
    if request.top_p < 1.0:
        ordered, index = scores.sort(descending=True)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
        dropped = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, index, before >= request.top_p)
        scores = scores.masked_fill(dropped, float("-inf"))
    return scores
