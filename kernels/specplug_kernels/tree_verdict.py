"""What verification kernels return, and the checks they share."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class TreeVerdict(NamedTuple):
    """The accepted path of each row. P = longest possible path, root included.

    ``path`` [B, P] int64: node indices from the root on; beyond the accepted part it repeats the last accepted node.
    ``num_accepted`` [B] int64: accepted draft tokens. ``bonus`` [B] int64: the token the target adds behind them.
    """

    path: Tensor
    num_accepted: Tensor
    bonus: Tensor


_DTYPES = {
    "probs": torch.float32,
    "laws": torch.float32,
    "accept": torch.float64,
    "bonus": torch.float64,
    "bitmap": torch.int32,
}


def check_dtypes(**tensors: Tensor | None) -> None:
    """Raise ValueError unless laws are float32, uniforms float64, a bitmap int32 and everything else int64."""
    for name, tensor in tensors.items():
        wanted = _DTYPES.get(name, torch.int64)
        if tensor is not None and tensor.dtype != wanted:
            raise ValueError(f"{name} must be {wanted}, not {tensor.dtype}")


def row_stride(tensor: Tensor) -> int:
    """From one row to the next; 0 if the rows share one."""
    return tensor.stride(0) if tensor.shape[0] > 1 else 0
