"""Randomness per row, counter based: a draw is a function of (row seed, position, index) and of nothing else.

So a row alone and the same row in a batch draw the same, and a round that is repeated repeats its draws.
The mixer is SplitMix64 (Steele, Lea, Flood 2014), applied once per counter word; int64 arithmetic wraps in torch.
"""

from __future__ import annotations

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as int64; multiplied in tensors it wraps, in Python use _wrap
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB

# Where in a round's counter space each purpose draws, so that no two purposes ever share a draw.
DRAFT_STREAM = 1  # of the first level; the others follow in steps of 256 (drafters/expand.py)
VERIFY_STREAM = 2  # index 0: the bonus token; index i: the acceptance of node i


def _wrap(number: int) -> int:
    """A Python integer modulo 2**64 as a signed one: what int64 arithmetic would have made of it."""
    return (number + 2**63) % 2**64 - 2**63


def _shift_right(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)  # logical: int64 >> is arithmetic


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def uniforms(seeds: Tensor, positions: Tensor, stream: int, count: int) -> Tensor:
    """`count` numbers a row, uniform on the open interval (0, 1).

    `seeds` and `positions` [B] int64; `stream` names the purpose. Returns [B, count] float64 of 52 random bits.
    """
    index = torch.arange(count, device=seeds.device, dtype=torch.int64)
    key = _mix(seeds + _GOLDEN * (positions + 1))
    key = _mix(key + _wrap(_GOLDEN * stream))
    bits = _mix(key[:, None] + _GOLDEN * (index + 1))
    return (_shift_right(bits, 12).to(torch.float64) + 0.5) * 2.0**-52


def row_seeds(seed: int, rows: int, device: torch.device) -> Tensor:
    """A seed a row derived from one `seed`: [rows] int64; row i's depends on `seed` and i only."""
    return _mix(_wrap(seed) + _GOLDEN * torch.arange(1, rows + 1, device=device, dtype=torch.int64))


def draw(weights: Tensor, uniform: Tensor) -> Tensor:
    """One index a row with probability proportional to `weights` [B, V] >= 0 by inversion; `uniform` [B] -> [B] int64.

    An index of weight zero is never drawn.
    """
    cumulative = weights.to(torch.float64).cumsum(-1)
    total = cumulative[:, -1:]
    # u * total may round up to total, which would point behind the last index that has weight
    threshold = torch.minimum(uniform[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, threshold, right=True).squeeze(1)


def draw_without_replacement(weights: Tensor, count: int, noise: Tensor) -> Tensor:
    """`count` distinct indices in the order drawn: the exponential race, -log(u)/w smallest first.

    Sequoia (arXiv 2402.12374, section 3) draws children so. `weights` [..., V] >= 0, `noise` uniform on (0, 1), of the
    same shape, float64. Indices of weight zero come last, when nothing else is left. Returns [..., count] int64.
    """
    times = -noise.log() / weights.to(noise.dtype)
    return times.topk(count, dim=-1, largest=False, sorted=True).indices
