"""The compiled matrix products: loaded once a process, tried against their definition, and called."""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from specplug_kernels.native.opening import DTYPES, TRIAL_ERRORS, Known, UnusableError, numbers, opened

CALL = struct.Struct("@4P 3q 2q")
"""``struct call`` of ``linear.c``."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LinearLibrary:
    """``dtypes``: those served. ``threads``: whether it runs on torch's threads, or else on the caller's alone.
    ``vectors``: whether it was built with the vector instructions that it is fast with.
    """

    multiply: Callable[[bytes], int]
    dtypes: frozenset[torch.dtype]
    threads: bool
    vectors: bool

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None, rows: int, outputs: int, inputs: int) -> Tensor:
        """``[..., N]`` from ``x`` ``[..., K]`` of so many rows and ``weight`` ``[N, K]``, contiguous: nothing is looked at again."""
        if not x.is_contiguous():
            x = x.contiguous()
        out = x.new_empty((*x.shape[:-1], outputs))
        status = self.multiply(
            CALL.pack(
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


def linear_library() -> LinearLibrary | str:
    """The library, built and loaded by the first call of the process; or why there is none."""
    return _known()


def load(path: Path) -> LinearLibrary:
    """Load a library and try it.

    Raises:
        UnusableError: it does not load, is another version's, or computes something else than the definition.
    """
    found = opened(path, "specplug_linear", CALL.size)
    loaded = LinearLibrary(found.function, found.dtypes, found.threads, found.vectors)
    for dtype in sorted(loaded.dtypes, key=DTYPES.__getitem__):
        _try(loaded, dtype)
    return loaded


def _try(loaded: LinearLibrary, dtype: torch.dtype) -> None:
    """Compare with the definition: tiles of every number of rows, rows of W that fill none, inputs that fill no vector, threads."""
    with torch.no_grad():
        for rows, outputs, inputs in ((1, 5, 3), (2, 13, 40), (3, 25, 33), (7, 7, 61), (11, 700, 57)):
            x, weight = numbers(rows, inputs).to(dtype), numbers(outputs, inputs).div_(inputs).to(dtype)
            bias = numbers(outputs).to(dtype) if rows % 2 else None
            ours = loaded(x, weight, bias, rows, outputs, inputs).float()
            wanted = functional.linear(x.float(), weight.float(), None if bias is None else bias.float())
            if not torch.allclose(ours, wanted, rtol=TRIAL_ERRORS[dtype], atol=TRIAL_ERRORS[dtype]):
                worst = (ours - wanted).abs().max().item()
                raise UnusableError(f"in {dtype} it is off by {worst:.2g} from the definition")


def _nothing_known() -> Known[LinearLibrary]:
    return Known("linear", load, logger)


_known = _nothing_known()
