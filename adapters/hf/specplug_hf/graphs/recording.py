"""A function of no arguments whose kernels are recorded and can be launched again, on the memory that they ran on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch


class Recording(Protocol):
    """`result`: what the function returned; its tensors hold what the last replay computed."""

    result: Any

    def replay(self) -> None:
        """Run the recorded kernels again."""
        ...


Recorder = Callable[[Callable[[], Any]], Recording]


class CudaRecording:
    """A CUDA graph. Whatever the function's Python decided is decided for good; it must not wait for the device."""

    def __init__(self, function: Callable[[], Any], pool: Any) -> None:
        self._graph = torch.cuda.CUDAGraph()
        # other threads may go on using the device in the meantime
        with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
            self.result = function()

    def replay(self) -> None:
        self._graph.replay()


def recorder_of(device: torch.device) -> Recorder | None:
    """How functions are recorded on `device`: CUDA graphs in a memory pool that they share; None: not at all."""
    if device.type != "cuda":
        return None
    pool = torch.cuda.graph_pool_handle()
    return lambda function: CudaRecording(function, pool)
