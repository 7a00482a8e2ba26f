"""The compiled matrix products: tried against their definition, and called."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from specplug_kernels.native.library import DTYPES, Known, Library, numbers

TRIED = ((1, 5, 3), (2, 13, 40), (3, 25, 33), (7, 7, 61), (11, 700, 57))
"""Rows, outputs and inputs: tiles of every number of rows, rows of W that fill none, inputs that fill no vector, threads."""


class LinearLibrary(Library):
    """Products of a few rows with a weight."""

    source = "linear"
    call = struct.Struct("@4P 3q 2q")

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None, rows: int, outputs: int, inputs: int) -> Tensor:
        """``[..., N]`` from ``x`` ``[..., K]`` of so many rows and ``weight`` ``[N, K]``, contiguous: nothing is looked at again."""
        if not x.is_contiguous():
            x = x.contiguous()
        out = x.new_empty((*x.shape[:-1], outputs))
        status = self.function(
            self.call.pack(
                x.data_ptr(),
                weight.data_ptr(),
                0 if bias is None else bias.data_ptr(),
                out.data_ptr(),
                rows,
                outputs,
                inputs,
                DTYPES[x.dtype],
                torch.get_num_threads() if self.threads else 1,
            )
        )
        if status:
            raise MemoryError(f"no memory for {rows} rows of {inputs} numbers")
        return out

    def trials(self, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
        for rows, outputs, inputs in TRIED:
            x, weight = numbers(rows, inputs).to(dtype), numbers(outputs, inputs).div_(inputs).to(dtype)
            bias = numbers(outputs).to(dtype) if rows % 2 else None
            wanted = functional.linear(x.float(), weight.float(), None if bias is None else bias.float())
            yield self(x, weight, bias, rows, outputs, inputs), wanted


linear_library = Known(LinearLibrary)
"""Called: the library, built and loaded by the first call of the process; or why there is none."""
