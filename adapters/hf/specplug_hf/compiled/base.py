"""A kind of layers that a compiled kernel may compute, in our own forwards only."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from specplug_hf.stand_ins import Answer, StandIns


class CompiledLayers(StandIns, ABC):
    """Layers of `model` on a CPU, of this thread's forwards between `begin` and `end`, for `rows` rows.

    Left alone are modules with a forward of somebody else's (accelerate's hooks), and all of a model that is compiled, or any part of it.
    What a layer's weight is, is looked up at every call.
    """

    def __init__(self, model: nn.Module) -> None:
        everything = list(model.modules())
        untouched = not any(_is_compiled(module) for module in everything)
        found = [module for module in everything if self.takes(module)] if untouched else []
        super().__init__(found, [self.answer(module) for module in found])
        self.rows = self.rows_of(found)

    @abstractmethod
    def takes(self, module: nn.Module) -> bool:
        """Whether the kernel may compute `module`."""

    @abstractmethod
    def rows_of(self, modules: list[nn.Module]) -> range:
        """Rows for which any of `modules` may be computed."""

    @abstractmethod
    def answer(self, module: nn.Module) -> Answer:
        """What stands in for `module.forward`."""

    def pays(self, rows: int) -> bool:
        """Whether a forward of `rows` rows is worth beginning, and nothing is on in this thread that would have torch compute in
        another way, or wants to see what it computes."""
        return rows in self.rows and not torch.is_autocast_enabled("cpu") and _get_current_dispatch_mode() is None


def _is_compiled(module: nn.Module) -> bool:
    """Whether tracing may run through it and what is in it: it would meet what it cannot trace."""
    forward = module.__dict__.get("forward")
    return module._compiled_call_impl is not None or hasattr(forward, "_torchdynamo_orig_callable")
