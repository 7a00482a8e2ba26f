"""A toy language model with a cache: its logits depend on every token before, on where each stands, and on nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

DECAY = 0.7  # of a token's influence, by distance
PERIOD = 8  # of the position's own influence


@dataclass(frozen=True, slots=True)
class ToyModel:
    """`last`, `past` [V, V]: what the newest and every earlier token say about the next; `place` [PERIOD, V]."""

    last: Tensor
    past: Tensor
    place: Tensor

    @property
    def vocab(self) -> int:
        return int(self.last.shape[-1])

    def entries(self, tokens: Tensor) -> Tensor:
        """What a cache keeps of `tokens` [...]: [..., V]."""
        return self.past[tokens]

    def logits(self, tokens: Tensor, positions: Tensor, entries: Tensor, places: Tensor, seen: Tensor) -> Tensor:
        """Logits [B, n, V] behind `tokens` at `positions` [B, n].

        `entries` [B, T, V] and `places` [B, T] are the cache; `seen` [B, n, T] bool says what each token looks at.
        """
        distance = (positions[:, :, None] - places[:, None]).to(entries.dtype)
        weights = torch.where(seen, DECAY**distance, 0.0)
        return self.last[tokens] + weights @ entries + self.place[positions % PERIOD]

    def next_logits(self, tokens: Sequence[int]) -> Tensor:
        """Logits [V] behind `tokens`, from scratch."""
        text = torch.tensor([list(tokens)])
        place = torch.arange(len(tokens))[None]
        seen = torch.ones(1, 1, len(tokens) - 1, dtype=torch.bool)
        return self.logits(text[:, -1:], place[:, -1:], self.entries(text[:, :-1]), place[:, :-1], seen)[0, 0]


def make_model(seed: int, vocab: int, dtype: torch.dtype) -> ToyModel:
    """A random model."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, spread: float) -> Tensor:
        return (torch.randn(*shape, generator=generator, dtype=torch.float64) * spread).to(dtype)

    return ToyModel(
        normal(vocab, vocab, spread=1.2), normal(vocab, vocab, spread=0.6), normal(PERIOD, vocab, spread=0.6)
    )


def make_draft(model: ToyModel, seed: int, noise: float = 0.35) -> ToyModel:
    """A model that often agrees with `model`."""
    other = make_model(seed, model.vocab, model.last.dtype)
    return ToyModel(*(a + noise * b for a, b in zip(_parts(model), _parts(other), strict=True)))


def _parts(model: ToyModel) -> tuple[Tensor, Tensor, Tensor]:
    return model.last, model.past, model.place
