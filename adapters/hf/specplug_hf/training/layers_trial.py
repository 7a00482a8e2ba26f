"""What leaving sublayers out of a model would bring: measured on its own greedy texts (SWIFT, arXiv 2410.06916, section 3.2)."""

from __future__ import annotations

import copy
import statistics
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from specplug.host import SkippedLayers
from specplug_hf.commands.models import synchronize
from specplug_hf.skipping import LayerSkipping, num_layers
from specplug_hf.training.continuations import extend
from specplug_hf.training.draft_acceptance import acceptance_by_depth

BLOCK = 8  # tokens that a draft reads of its own, at most; what lies before comes from the whole model
TURNS = 9  # times that a forward is timed


@dataclass(frozen=True, slots=True)
class Shares:
    """Of a decode step's time, what one attention and one MLP take."""

    attention: float
    mlp: float

    def saved(self, skipped: SkippedLayers) -> float:
        """What a step without `skipped` saves, at most all."""
        return min(1.0, len(skipped.attention) * self.attention + len(skipped.mlp) * self.mlp)


@dataclass(frozen=True, slots=True)
class Score:
    """What a choice brings: `agreement` is the share of the model's own tokens that the draft would choose too, `saved` the share
    of a decode step's time that the draft saves, `speedup` the predicted tokens a second over plain decoding, with a chain of
    `length` tokens. The target's pass over the chain is taken to cost what a decode step costs."""

    agreement: float
    saved: float
    speedup: float
    length: int

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


class LayerTrial:
    """Greedy texts that `model` writes from `prompts` [P, T], `new` tokens each; every choice of sublayers meets the same."""

    def __init__(self, model: PreTrainedModel, prompts: Tensor, new: int, shares: Shares) -> None:
        self.model, self.shares = model, shares
        self._start = prompts.shape[1]
        self._texts = extend(model, prompts, new)
        self._counted = _before_end(self._texts[:, self._start :], model)
        self._cache = _read(model, self._texts[:, :-1])

    @torch.no_grad()
    def score(self, skipped: SkippedLayers) -> Score:
        """What leaving `skipped` out brings. Raises what `LayerSkipping` raises; the model is as found afterwards."""
        with LayerSkipping(self.model, skipped):
            chosen = [self._chosen(start) for start in range(self._start, self._texts.shape[1], BLOCK)]
        agreed = torch.cat(chosen, 1) == self._texts[:, self._start :]
        saved = self.shares.saved(skipped)
        speedup, length = predicted(acceptance_by_depth(agreed, self._counted, BLOCK), 1 - saved)
        return Score(float(agreed[self._counted].float().mean()), saved, speedup, length)

    def _chosen(self, start: int) -> Tensor:
        """The draft's choice for the tokens from `start` on, a block of them, behind the whole model's cache: [P, n]."""
        # a token is chosen where the one before it is read
        tokens = self._texts[:, start - 1 : min(start + BLOCK, self._texts.shape[1]) - 1]
        positions = torch.arange(start - 1, start - 1 + tokens.shape[1], device=tokens.device).expand_as(tokens)
        cache = _beginning(self._cache, start - 1)
        output = self.model(input_ids=tokens, position_ids=positions, past_key_values=cache, use_cache=True)
        return output.logits.argmax(-1).to(self._texts.device)


def predicted(rates: tuple[float, ...], cost: float) -> tuple[float, int]:
    """Best tokens a decode step's time with a chain of 1, 2, ... tokens, and its length.

    `rates`: P(accepted at depth d | accepted above it); `cost`: of a draft step, in decode steps (MagicDec, arXiv 2408.11049,
    section 3).
    """
    best, tokens, product = (0.0, 0), 1.0, 1.0
    for length, rate in enumerate(rates, start=1):
        product *= rate
        tokens += product
        best = max(best, (tokens / (1 + length * cost), -length))  # of equals the shortest
    return best[0], -best[1]


@torch.no_grad()
def measured_shares(model: PreTrainedModel, prompt: Tensor) -> Shares:
    """Time decode steps behind `prompt` [1, T] with nothing left out, without the inner attentions, and without the inner MLPs."""
    inner = frozenset(range(1, num_layers(model) - 1))
    variants = (SkippedLayers(), SkippedLayers(attention=inner), SkippedLayers(mlp=inner))
    skippings = [LayerSkipping(model, skipped) for skipped in variants]
    cache, times = _read(model, prompt), [[0.0] * TURNS for _ in variants]
    for turn in range(TURNS):  # in turns, so that a busy machine is busy for all of them
        for variant, skipping in enumerate(skippings):
            own = _beginning(cache, prompt.shape[1])
            synchronize(model)
            begun = time.perf_counter()
            with skipping:
                model(input_ids=prompt[:, -1:], past_key_values=own, use_cache=True)
            synchronize(model)
            times[variant][turn] = time.perf_counter() - begun
    whole, attentions, mlps = (statistics.median(listed) for listed in times)
    attention, mlp = (max(0.0, 1 - without / whole) / len(inner) for without in (attentions, mlps))
    return Shares(attention, mlp)


@torch.no_grad()
def _read(model: PreTrainedModel, tokens: Tensor) -> DynamicCache:
    """The cache of `tokens` [P, T]; of layers with a window too it holds all."""
    cache = DynamicCache()
    model(input_ids=tokens, past_key_values=cache, use_cache=True)
    return cache


def _beginning(cache: DynamicCache, length: int) -> DynamicCache:
    """The first `length` positions of `cache`, to be written behind; `cache` itself stays as it is."""
    part = DynamicCache()
    part.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in part.layers:
        layer.keys, layer.values = layer.keys[:, :, :length], layer.values[:, :, :length]
    return part


def _before_end(tokens: Tensor, model: PreTrainedModel) -> Tensor:
    """Which of `tokens` [P, n] stand up to the first end token, that included."""
    end = model.config.get_text_config(decoder=True).eos_token_id
    if end is None:
        return torch.ones_like(tokens, dtype=torch.bool)
    is_end = torch.isin(tokens, torch.tensor(end, device=tokens.device))
    return is_end.cumsum(-1) - is_end.long() == 0
