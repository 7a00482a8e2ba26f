"""Root-mean-square norms of a model through the compiled kernel for a few rows.

Every family has its own class, some of which do something else (a weight that is added to one, no weight): which ones compute what the
kernel does is not told by names but tried, once for a class and dtype.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from specplug_hf.compiled.base import CompiledLayers
from specplug_hf.stand_ins import Answer, is_somebody_elses
from specplug_kernels import norm_numbers, rms_norm_reference, serves_norms, try_rms_norm

EPSILONS = ("variance_epsilon", "eps")
"""What models call what is added to the mean of squares."""
MOST_UNEQUAL = 0.02
"""Of the numbers of a trial in half precision."""

_known: weakref.WeakKeyDictionary[type[nn.Module], dict[Any, str | None]] = weakref.WeakKeyDictionary()
"""What was found of a class, by its forward (somebody may give it another) and dtype."""


class Norms(CompiledLayers):
    """The norms that divide by the root mean square and multiply with a weight."""

    def takes(self, module: nn.Module) -> bool:
        weight = _only_weight(module)
        if weight is None or is_somebody_elses(module) or not weight.is_cpu:
            return False
        return epsilon_of(module) is not None and serves_norms(weight.dtype)

    def rows_of(self, modules: list[nn.Module]) -> range:
        most = (norm_numbers(m.weight.dtype) // m.weight.shape[0] for m in modules)  # type: ignore[arg-type, union-attr, operator, index]
        return range(1, max(most, default=0) + 1)

    def answer(self, module: nn.Module) -> Answer:
        parameters, own, epsilon = module._parameters, module.__dict__, epsilon_of(module) or EPSILONS[0]

        def answer(forward: Any, hidden_states: Tensor) -> Tensor:
            weight, added = parameters.get("weight"), own.get(epsilon)
            ours = None if weight is None or added is None else try_rms_norm(hidden_states, weight, added)
            result: Tensor = forward(hidden_states) if ours is None else ours
            return result

        return answer


def epsilon_of(module: nn.Module) -> str | None:
    """The name of the attribute that is added to the mean of squares, of a module whose class is found to compute this norm."""
    known = _known.setdefault(type(module), {})
    key = type(module).forward, module._parameters["weight"].dtype  # type: ignore[union-attr]
    if key not in known:
        known[key] = next((name for name in EPSILONS if _is_norm(module, name)), None)
    name = known[key]
    return name if name is not None and isinstance(module.__dict__.get(name), float) else None


def _only_weight(module: nn.Module) -> Tensor | None:
    """The weight of a module that has nothing but one vector of this name."""
    weight = module._parameters.get("weight")
    if weight is None or weight.ndim != 1 or len(module._parameters) > 1 or module._buffers or module._modules:
        return None
    return weight


@torch.no_grad()
def _is_norm(module: nn.Module, epsilon: str) -> bool:
    """Whether `module`, given another weight, computes the norm with its attribute `epsilon`, of numbers of which that is a part."""
    added, weight = module.__dict__.get(epsilon), module._parameters["weight"]
    if not isinstance(added, float) or type(module).forward is nn.Module.forward:
        return False
    x = torch.linspace(-2.0, 3.0, 2 * len(weight), dtype=weight.dtype).view(2, -1) * max(added, 1e-12) ** 0.5
    other = torch.linspace(3.0, -1.0, len(weight), dtype=weight.dtype)
    try:
        theirs = functional_call(module, {"weight": other}, (x,))
    except Exception:  # any class may stand here, and one that wants other arguments is none of ours
        return False
    wanted = rms_norm_reference(x, other, added)
    return isinstance(theirs, Tensor) and theirs.shape == x.shape and _is_same(theirs, wanted)


def _is_same(theirs: Tensor, wanted: Tensor) -> bool:
    """Whether both differ in the order of sums at most. In half precision that shows in a few numbers, another rounding in a third."""
    if theirs.dtype is not wanted.dtype:
        return False
    if theirs.dtype == torch.float32:
        return torch.allclose(theirs, wanted, rtol=2.0**-20, atol=0.0)
    return float((theirs != wanted).float().mean()) < MOST_UNEQUAL
