"""The compiled root-mean-square norm: tried against its definition, and called."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import torch
from torch import Tensor

from specplug_kernels.native.library import DTYPES, Known, Library, numbers
from specplug_kernels.reference import rms_norm_reference

TRIED = ((1, 3), (2, 40), (3, 128), (2, 217))
"""Rows and widths: that fill no vector, one, all chains of sums, and more than they do."""


class NormLibrary(Library):
    """The norm of a few rows."""

    source = "rms_norm"
    call = struct.Struct("@3P 3q d")

    def __call__(self, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """``[..., D]`` from ``x`` ``[..., D]`` and ``weight`` ``[D]``, contiguous and of one dtype: nothing is looked at again."""
        out = torch.empty_like(x)
        width = weight.shape[0]
        self.function(
            self.call.pack(
                x.data_ptr(),
                weight.data_ptr(),
                out.data_ptr(),
                x.numel() // width,
                width,
                DTYPES[x.dtype],
                epsilon,
            )
        )
        return out

    def trials(self, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
        for rows, width in TRIED:
            x, weight = numbers(rows, width).mul_(1e-3).to(dtype), numbers(width).to(dtype)
            yield self(x, weight, 1e-6), rms_norm_reference(x, weight, 1e-6).float()


norm_library = Known(NormLibrary)
"""Called: the library, built and loaded by the first call of the process; or why there is none."""
