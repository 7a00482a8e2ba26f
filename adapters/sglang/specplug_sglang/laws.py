"""Sampling laws: what SGLang's sampler draws from, for every tree node; and the law of a draft token.

Temperature, top-k, top-p and min-p as SGLang's PyTorch sampler applies them: all three cut the same sorted law, before it
is renormalised once. (Its FlashInfer sampler renormalises between top-k, top-p and min-p where min-p is used.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

GREEDY_SHARPNESS = 8.0  # a greedy row that is drafted for beside sampled ones: its best tokens first, nearly always


def target_law(logits: Tensor, sampling: Any) -> Tensor:
    """float32 probabilities [B, N, V] of `logits` [B, N, V] under SGLang's `SamplingBatchInfo`; greedy rows are one-hot."""
    probs = (logits / sampling.temperatures.view(-1, 1, 1)).softmax(-1)
    return cut(probs, sampling)


def draft_law(logits: Tensor, sampling: Any) -> Tensor:
    """The same for a draft's logits [B, w, V]; greedy rows keep a law with more than one token, so that a tree can be filled."""
    greedy = (sampling.top_ks <= 1).view(-1, 1, 1)
    temperatures = torch.where(greedy, 1 / GREEDY_SHARPNESS, sampling.temperatures.view(-1, 1, 1))
    probs = (logits.float() / temperatures).softmax(-1)
    return torch.where(greedy, probs, cut(probs, sampling))


def cut(probs: Tensor, sampling: Any) -> Tensor:
    """`probs` [B, N, V] without what top-k, top-p and min-p forbid, renormalised."""
    if not (sampling.need_top_k_sampling or sampling.need_top_p_sampling or sampling.need_min_p_sampling):
        return probs
    ordered, order = probs.sort(dim=-1, descending=True)
    mass_before = ordered.cumsum(-1) - ordered
    rank = torch.arange(probs.shape[-1], device=probs.device)
    kept = (rank < sampling.top_ks.view(-1, 1, 1)) & (mass_before <= sampling.top_ps.view(-1, 1, 1))
    if sampling.need_min_p_sampling:
        kept &= ordered >= ordered[..., :1] * sampling.min_ps.view(-1, 1, 1)
    ordered = ordered * kept
    ordered = ordered / ordered.sum(-1, keepdim=True)
    return torch.zeros_like(probs).scatter_(-1, order, ordered)
