"""Linear layers of a model through the compiled kernel for a few rows, in our own forwards only."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from specplug_hf.stand_ins import Answer, StandIns, is_somebody_elses
from specplug_kernels import serves_weight, skinny_rows, try_linear

KERNELS = frozenset({"auto", "native"})
"""What `Speculator(kernel=)` may say for it; every other one is torch's or a GPU's."""


class Linears(StandIns):
    """The plain `nn.Linear` layers of `model` on a CPU, of this thread's forwards between `begin` and `end`.

    Left alone are modules of any other type (quantised, LoRA's own, parametrised), those with a forward of somebody else's
    (accelerate's hooks), and all of a model that is compiled, or any part of it. What a layer's weight is, is looked up at every call.
    """

    def __init__(self, model: nn.Module) -> None:
        known = nn.Linear.forward.__module__ == nn.Linear.__module__  # and not somebody else's for all of them
        everything = list(model.modules())
        untouched = known and not any(_is_compiled(module) for module in everything)
        modules = [module for module in everything if _serves(module)] if untouched else []
        super().__init__(modules, [_answer(module) for module in modules])
        served = [skinny_rows(module.weight.dtype) for module in modules]
        self._rows = range(min((r.start for r in served), default=0), max((r.stop for r in served), default=0))

    def serve(self, rows: int) -> bool:
        """Whether a forward of `rows` rows is worth beginning, and nothing is on in this thread that would have torch compute in
        another way, or wants to see what it computes."""
        return rows in self._rows and not torch.is_autocast_enabled("cpu") and _get_current_dispatch_mode() is None


def _serves(module: nn.Module) -> bool:
    if type(module) is not nn.Linear or is_somebody_elses(module):
        return False
    weight = module._parameters.get("weight")
    return weight is not None and serves_weight(weight)


def _is_compiled(module: nn.Module) -> bool:
    """Whether tracing may run through it and what is in it: it would meet what it cannot trace."""
    forward = module.__dict__.get("forward")
    return module._compiled_call_impl is not None or hasattr(forward, "_torchdynamo_orig_callable")


def _answer(module: nn.Module) -> Answer:
    parameters = module._parameters  # `module.weight` would look through three dictionaries first

    def answer(forward: Any, input: Tensor) -> Tensor:  # noqa: A002 (as `nn.Linear.forward` has it)
        try:
            weight, bias = parameters["weight"], parameters["bias"]
        except KeyError:  # no parameter any more
            weight = bias = None
        ours = None if weight is None else try_linear(input, weight, bias)
        result: Tensor = forward(input) if ours is None else ours
        return result

    return answer
