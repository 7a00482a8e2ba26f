"""The heads laid out for drafting on a CPU: the same numbers, in few operations.

With a round's few rows every operation costs about as much as the next, whatever it computes, so constant factors are moved into weights.
And a product with weights that stand input by input is quicker than with weights as they are saved, for few rows: with 256 x
3072 in fp32 (MKL, AVX2) 1.7 times for one row, 1.5 for three, but 0.7 for four.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from specplug.mlp.config import HeadsConfig
from specplug.mlp.heads import EPSILON, Heads

HALF = math.sqrt(0.5)
FEW_ROWS = 3
COPIED_BYTES = 2**26  # of one head's product with the vocabulary: the largest that is kept in a second layout, too
COPIED_DTYPES = (torch.float32, torch.float64)


@dataclass(frozen=True, slots=True)
class Level:
    """One head. V vocabulary, W width of the states, D what comes in."""

    emb: Tensor  # [V, W]
    proj: Tensor  # [D, W], for states as `CPUHeads` has them
    norm: Tensor  # [W]: weight and bias, for what GELU divides by sqrt(2)
    bias: Tensor  # [W]
    head: nn.Module  # W to V
    columns: (
        Tensor | None
    )  # [W, V]: the same input by input, for states as `CPUHeads` has them; None: not worth its memory


class CPUHeads:
    """Stands in for `Heads` in a `HeadsRunner`: `start`, `step` and `logits`, of rows [n, ...] alone. Shares their weights.

    Its states are `Heads`' own times sqrt(2), the first one times sqrt(2 / D) if inputs are scaled.
    """

    def __init__(self, heads: Heads) -> None:
        self.config: HeadsConfig = heads.config
        self.dtype = heads.dtype
        self._token_weight = heads.config.token_weight
        self._least_hidden, self._least = (
            torch.tensor(math.sqrt(size * EPSILON), dtype=heads.dtype)
            for size in (heads.config.emb_dim, heads.config.width)
        )
        self._levels = _levels(heads)

    def start(self, hidden: Tensor) -> Tensor:
        """As `Heads.start`: [n, D] to [n, D]."""
        return _normed(hidden, self._least_hidden) if self.config.scale_input else hidden

    def step(self, state: Tensor, tokens: Tensor, head: int) -> Tensor:
        """As `Heads.step`: `state` [n, D or W], `tokens` [n] to [n, W]."""
        level = self._levels[head]
        mixed = torch.addmm(level.emb.index_select(0, tokens), state, level.proj, beta=self._token_weight)
        x = torch.addcmul(level.bias, _normed(mixed, self._least), level.norm)
        return torch.addcmul(x, x, x.erf())

    def logits(self, state: Tensor, head: int) -> Tensor:
        """As `Heads.logits`: [n, W] to [n, V]."""
        level = self._levels[head]
        if level.columns is not None and state.shape[0] <= FEW_ROWS:
            return torch.mm(state, level.columns)
        logits: Tensor = level.head(state * HALF)
        return logits


def _normed(x: Tensor, least: Tensor) -> Tensor:
    """`x` [n, W], every row of length 1, short of `least` in the denominator."""
    size: Tensor = torch.linalg.vector_norm(x, dim=1, keepdim=True).hypot_(least)
    return x / size


def _levels(heads: Heads) -> tuple[Level, ...]:
    """What is tied stands there once."""
    config = heads.config
    made: dict[Tensor, Tensor] = {}

    def weight(name: str) -> Tensor:
        return heads.get_parameter(name).detach()

    def columns(name: str, scale: float) -> Tensor:
        key = heads.get_parameter(name)
        if key not in made:
            made[key] = (weight(name).t() * scale).contiguous()
        return made[key]

    first = math.sqrt(config.emb_dim / 2) if config.scale_input else 1.0
    return tuple(
        Level(
            emb=weight(f"emb.{i}.weight"),
            proj=columns(f"proj.{i}.weight", HALF if i else first),
            norm=weight(f"ln.{i}.weight") * math.sqrt(config.width / 2),
            bias=weight(f"ln.{i}.bias") * HALF,
            head=heads.head[i],
            columns=columns(f"head.{i}.weight", HALF) if _copied(weight(f"head.{i}.weight")) else None,
        )
        for i in range(config.n_predict)
    )


def _copied(weight: Tensor) -> bool:
    return weight.dtype in COPIED_DTYPES and weight.nbytes <= COPIED_BYTES
