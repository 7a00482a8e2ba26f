"""When FlashInfer cannot build or run a kernel: the error that says what to do, and what ``"auto"`` remembers of it."""

from __future__ import annotations

import logging

import torch

from specplug_kernels.paging import PagedShape

logger = logging.getLogger(__name__)

REMEDY = (
    "it builds a kernel when that is first used, with nvcc and ninja (CUDA_HOME names CUDA's folder), unless the "
    "package flashinfer-jit-cache brings it; kernel='triton' and kernel='torch' do without"
)

_failures: dict[tuple[torch.dtype, int, str], str] = {}


class FlashInferError(RuntimeError):
    """FlashInfer could not build, plan or run a kernel. ``shape``: what for; ``reason``: what it said, as a phrase."""

    def __init__(self, shape: PagedShape, error: Exception) -> None:
        self.shape = shape
        said = str(error).strip().partition("\n")[0]
        self.reason = (
            f"FlashInfer failed with heads of {shape.head_dim} in {shape.dtype} ({type(error).__name__}: {said})"
        )
        super().__init__(f"{self.reason}: {REMEDY}")


class UnplannedError(RuntimeError):
    """A layer needs a kernel that was not planned before a CUDA graph was captured."""


def remember(error: FlashInferError, instead: str) -> None:
    """Let ``"auto"`` pass over FlashInfer where it failed, as long as the process lives; the log says it once."""
    kind = _kind(error.shape)
    if kind not in _failures:
        _failures[kind] = error.reason
        logger.warning("specplug: %s. From now on kernel='auto' takes %s for them.", error, instead)


def failed_before(shape: PagedShape) -> str | None:
    """What FlashInfer said when it failed at this dtype and head dimension, as a phrase; ``None`` if it has not."""
    return _failures.get(_kind(shape))


def _kind(shape: PagedShape) -> tuple[torch.dtype, int, str]:
    """What kernels are built for: those that differ in the rest are the same code."""
    return shape.dtype, shape.head_dim, shape.device.type
