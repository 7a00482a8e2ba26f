"""The heads themselves: head i makes from a state and a token the next state, and from that the logits of the token after."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from specplug.mlp.config import HeadsConfig

EPSILON = 1e-6


class Norm(nn.Module):
    """Division by the root mean square, no mean subtracted; then a weight and a bias."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, EPSILON) + self.bias


class Heads(nn.Module):
    """`config.n_predict` heads (arXiv 2404.19124, section 3; V vocabulary, D hidden size of the target, W width of the states).

    s = proj_i(s) + (w_e / w_s) * emb_i(token); s = GELU(norm_i(s)); logits = head_i(s). Tied: all heads share emb, norm and
    head, and all but the first share proj.
    """

    def __init__(self, config: HeadsConfig) -> None:
        super().__init__()
        self.config = config
        count, width, tied = config.n_predict, config.width, config.tie_weights
        kinds = 1 if tied else count
        emb = [nn.Embedding(config.vocab_size, width) for _ in range(kinds)]
        head = [nn.Linear(width, config.vocab_size, bias=False) for _ in range(kinds)]
        norm = [Norm(width) for _ in range(kinds)]
        inner = [nn.Linear(width, width, bias=False) for _ in range(min(kinds, count - 1) if tied else count - 1)]
        self.emb = nn.ModuleList(emb[i % kinds] for i in range(count))
        self.head = nn.ModuleList(head[i % kinds] for i in range(count))
        self.ln = nn.ModuleList(norm[i % kinds] for i in range(count))
        first = nn.Linear(config.emb_dim, width, bias=False)
        self.proj = nn.ModuleList([first, *(inner[i % len(inner)] for i in range(count - 1))])

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return next(self.parameters()).dtype

    def initialise(self, generator: torch.Generator) -> None:
        """Random weights to train from: truncated normal of deviation 1 / sqrt(W), as the authors'."""
        for module in self.modules():
            if isinstance(module, nn.Embedding | nn.Linear):
                nn.init.trunc_normal_(module.weight, 0, self.config.width**-0.5, generator=generator)

    def start(self, hidden: Tensor) -> Tensor:
        """The state before head 0, from what came out of the target's last norm: [..., D] to [..., D]."""
        if not self.config.scale_input:
            return hidden
        normed: Tensor = F.rms_norm(hidden, hidden.shape[-1:], None, EPSILON)
        return normed * math.sqrt(0.5)

    def step(self, state: Tensor, tokens: Tensor, head: int) -> Tensor:
        """The state behind `tokens` [...] int64 by head number `head`: [..., W]; `state` [..., D or W] is that before them."""
        mixed = torch.add(self.proj[head](state), self.emb[head](tokens), alpha=self.config.token_weight)
        normed: Tensor = self.ln[head](mixed)
        return F.gelu(normed)

    def logits(self, state: Tensor, head: int) -> Tensor:
        """What follows, by head number `head`: [..., W] to [..., V]."""
        logits: Tensor = self.head[head](state)
        return logits

    def forward(self, hidden: Tensor, tokens: Tensor) -> Iterator[Tensor]:
        """Logits [B, T, V] of every head in turn along a text, given what really followed.

        `hidden` [B, T, D]: of positions t, ...; `tokens` [B, T + n_predict - 1] int64: those of t + 1, ... Head i says at t
        what stands at t + 2 + i.
        """
        state, length = self.start(hidden), hidden.shape[1]
        for head in range(self.config.n_predict):
            state = self.step(state, tokens[:, head : head + length], head)
            yield self.logits(state, head)
