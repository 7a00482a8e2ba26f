"""A device's tensor on its way to the CPU, to be read when it is needed."""

from __future__ import annotations

import torch
from torch import Tensor


class Later:
    """A copy of `values`, begun now; only reading it waits, and only for what the device had been given until now."""

    def __init__(self, values: Tensor) -> None:
        self._done = None
        if values.device.type == "cpu":
            self._copy = values
            return
        self._copy = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        self._copy.copy_(values, non_blocking=True)
        self._done = torch.get_device_module(values.device).Event()
        self._done.record()

    def tolist(self) -> list[int]:
        """The values."""
        if self._done is not None:
            self._done.synchronize()
        return self._copy.tolist()
