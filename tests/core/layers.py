"""Layers for the tests of choosing policies: random, ragged, with garbage wherever a policy must not look."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from specplug.kv_policies import LayerContext


@dataclass
class Layer:
    """What one layer computes for texts of up to T tokens: a query, a key and a value of every position."""

    queries: Tensor  # [B, Hq, T, D]
    keys: Tensor  # [B, Hkv, T, D]
    values: Tensor  # [B, Hkv, T, D]
    index: int = 0

    @classmethod
    def random(cls, rows=3, heads=2, group=2, width=64, dim=8, seed=0, dtype=torch.float64, spread=1.5):
        generator = torch.Generator().manual_seed(seed)

        def draw(count):
            return (torch.randn(rows, count, width, dim, generator=generator, dtype=torch.float64) * spread).to(dtype)

        return cls(draw(heads * group), draw(heads), draw(heads))

    @property
    def scale(self) -> float:
        return self.keys.shape[3] ** -0.5

    def at(self, lengths, window, queries=4, rows=None, real=None) -> LayerContext:
        """What a policy sees when row b has `lengths[b]` tokens, of which the last `window` are not up for choice.

        The last `queries` committed queries, of which `real` (all that there are). `rows`: only these, with their lengths.
        """
        rows = range(len(lengths)) if rows is None else rows
        lengths = torch.tensor(lengths)
        width = int(lengths.max()) + 3  # a cache may be longer than any row
        beyond = torch.arange(width) >= lengths[:, None]
        keys, values = (self._padded(states[list(rows)], beyond) for states in (self.keys, self.values))
        asked = torch.full((len(lengths), self.queries.shape[1], queries, keys.shape[3]), torch.nan, dtype=keys.dtype)
        counts = lengths.clamp(max=queries if real is None else real)
        for row, (source, length, count) in enumerate(zip(rows, lengths.tolist(), counts.tolist(), strict=True)):
            if count:
                asked[row, :, -count:] = self.queries[source, :, length - count : length]
        choices = (lengths - window).clamp(min=0)
        return LayerContext(self.index, keys, values, asked, counts, lengths, choices, self.scale)

    def _padded(self, states, beyond):
        width = beyond.shape[1]
        longer = torch.nn.functional.pad(states, (0, 0, 0, max(0, width - states.shape[2])))[:, :, :width]
        return longer.masked_fill(beyond[:, None, :, None], torch.nan)


def check_choice(chosen, context, count) -> None:
    """What holds of every choice: its shape, and that nothing is chosen twice or that may not be chosen."""
    assert chosen.dtype == torch.int64
    assert chosen.shape[0] == len(context.lengths) and chosen.shape[2] == count
    assert chosen.shape[1] in (1, context.keys.shape[1])
    assert bool((chosen >= -1).all()) and bool((chosen < context.choices[:, None, None]).all())
    for positions in chosen.flatten(0, 1).tolist():
        real = [position for position in positions if position >= 0]
        assert len(set(real)) == len(real)


def chosen_sets(chosen) -> list[list[set[int]]]:
    """The positions chosen, by row and head, without -1."""
    return [[{position for position in head if position >= 0} for head in row] for row in chosen.tolist()]


def check_best(chosen: set[int], scores: list[float], count: int) -> None:
    """`chosen` are the `count` positions of highest score (of equal ones, any), or all there are."""
    assert len(chosen) == min(count, len(scores))
    left = [score for position, score in enumerate(scores) if position not in chosen]
    if chosen and left:
        assert min(scores[position] for position in chosen) >= max(left) - 1e-5 * max(map(abs, scores))


def softmax(logits: list[float]) -> list[float]:
    """In plain words."""
    top = max(logits)
    weights = [torch.tensor(value - top, dtype=torch.float64).exp().item() for value in logits]
    return [weight / sum(weights) for weight in weights]


def dot(first: Tensor, second: Tensor) -> float:
    return sum(a * b for a, b in zip(first.tolist(), second.tolist(), strict=True))
