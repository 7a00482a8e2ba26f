"""Entries of ragged rows: read at positions that differ by row, and kept in stores that grow."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import pad


def keys_at(keys: Tensor, positions: Tensor) -> Tensor:
    """`keys` [B, H, T, D] at `positions` [B, N] or [B, H, N]: [B, H, N, D]. Those outside the cache give any key of it."""
    if positions.ndim == 2:
        positions = positions[:, None].expand(-1, keys.shape[1], -1)
    inside = positions.clamp(0, keys.shape[2] - 1)
    return keys.gather(2, inside[..., None].expand(-1, -1, -1, keys.shape[3]))


def widened(store: Tensor, size: int, dim: int, value: float = 0) -> Tensor:
    """`store` with at least `size` entries along `dim`, new ones of `value`: as it is, or at least twice as wide."""
    width = store.shape[dim]
    if size <= width:
        return store
    behind = store.ndim - 1 - dim % store.ndim  # dimensions behind it: `pad` counts from the last
    return pad(store, [0, 0] * behind + [0, max(size, 2 * width) - width], value=value)
