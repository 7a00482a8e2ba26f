"""What of a model's forward compiled kernels may compute on a CPU: linear layers and norms of a few rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from torch import nn

from specplug_hf.compiled.base import CompiledLayers
from specplug_hf.compiled.linears import Linears
from specplug_hf.compiled.norms import Norms
from specplug_hf.stand_ins import StandIns

KERNELS = frozenset({"auto", "native"})
"""What `Speculator(kernel=)` may say for it; every other one is torch's or a GPU's."""


class CompiledForward:
    """The kinds of layers of `model` that may be computed by compiled kernels, each for rows of its own."""

    def __init__(self, model: nn.Module) -> None:
        self._kinds: list[CompiledLayers] = [Linears(model), Norms(model)]
        self._joined: dict[tuple[bool, ...], StandIns] = {}

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep our forwards in the modules; the model is as found afterwards, also after an exception."""
        with ExitStack() as stack:
            for kind in self._kinds:
                stack.enter_context(kind.held())
            yield

    def for_rows(self, rows: int) -> StandIns | None:
        """What is worth beginning for a forward of `rows` rows, while the modules are held."""
        chosen = tuple(kind.pays(rows) for kind in self._kinds)
        if not any(chosen):
            return None
        if chosen not in self._joined:
            kinds = [kind for kind, pays in zip(self._kinds, chosen, strict=True) if pays]
            self._joined[chosen] = StandIns.joined(kinds)
        return self._joined[chosen]


__all__ = ["KERNELS", "CompiledForward"]
