"""Linear layers of a model through the compiled kernel for a few rows."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from specplug_hf.compiled.base import CompiledLayers
from specplug_hf.stand_ins import Answer, is_somebody_elses
from specplug_kernels import serves_weight, skinny_rows, try_linear


class Linears(CompiledLayers):
    """The plain `nn.Linear` layers: no module of any other type (quantised, LoRA's own, parametrised)."""

    def takes(self, module: nn.Module) -> bool:
        known = nn.Linear.forward.__module__ == nn.Linear.__module__  # and not somebody else's for all of them
        if not known or type(module) is not nn.Linear or is_somebody_elses(module):
            return False
        weight = module._parameters.get("weight")
        return weight is not None and serves_weight(weight)

    def rows_of(self, modules: list[nn.Module]) -> range:
        served = [skinny_rows(module.weight.dtype) for module in modules]  # type: ignore[arg-type]
        return range(min((r.start for r in served), default=0), max((r.stop for r in served), default=0))

    def answer(self, module: nn.Module) -> Answer:
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
