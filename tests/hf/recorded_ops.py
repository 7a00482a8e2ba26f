"""A stand-in for CUDA graphs, which no test machine without a GPU has: the tensor operations of a function, recorded and redone.

As strict as a capture where it matters here: what Python computed is frozen, results stand where they stood, and whatever would
wait for the device or copy from the host is refused. What it cannot show is that a GPU's kernels can be captured.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
_WAITS = {aten._local_scalar_dense.default, aten.nonzero.default, aten.equal.default, aten.masked_select.default}
_FROM_HOST = {aten.lift_fresh.default}


class RecordedOps:
    """`specplug_hf.graphs.Recording` of a function on a CPU."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._ops: list[tuple[Any, Any, Any, Any]] = []
        with _Recorder(self._ops):
            self.result = function()

    @torch.no_grad()
    def replay(self) -> None:
        for operation, args, kwargs, results in self._ops:
            again = operation(*args, **kwargs)
            if any(returned.alias_info is not None for returned in operation._schema.returns):
                continue  # written in place, or a view of what the operations before have written
            for old, new in zip(tree_leaves(results), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor):
                    old.copy_(new)


class _Recorder(TorchDispatchMode):
    def __init__(self, ops: list[Any]) -> None:
        super().__init__()
        self._ops = ops

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _WAITS:
            raise RuntimeError(f"{func} waits for the device: no capture would allow it")
        if func in _FROM_HOST:
            raise RuntimeError("a tensor is made from Python numbers: on a GPU that is a copy from the host")
        result = func(*args, **(kwargs or {}))
        self._ops.append((func, args, kwargs or {}, result))
        return result
