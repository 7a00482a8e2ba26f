"""transformers as a subject of the conformance suite: tiny Llamas, plain `generate` beside `generate(assistant=)`."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from torch import Tensor

from specplug import Need, Speculator
from specplug_conformance import Feature, Request, Watch
from specplug_conformance.llama.world import LlamaWorld
from specplug_hf import attention, patch
from specplug_hf.conformance.state import HFState
from specplug_hf.generation import prepare


class HFWorld(LlamaWorld):
    """The tiny Llamas with `assistant=`."""

    def speculated(self, request: Request, speculator: Speculator, watch: Watch | None = None) -> list[list[int]]:
        speculator.seed = request.seeds
        call = self.call(request)
        if watch is None:
            return self.rows(self.model.generate(**call, assistant=speculator), request)

        def watched(model: Any, input_ids: Tensor, **rest: Any) -> Any:
            generation = prepare(model, input_ids, speculator, **rest)
            for finished in generation.rounds():
                watch(finished, HFState(generation.host))
            return generation.finish()

        return self.rows(self.model.generate(**call, custom_generate=watched), request)

    def fingerprint(self) -> Hashable:
        names = tuple(m.config._attn_implementation for m in (self.model, self.draft))
        left = (len(attention._swapped), len(patch._attached), attention._current.step is None)
        return super().fingerprint(), names, left


class HFSubject:
    """Rows of one `generate` call all begin together, and end when they end."""

    features = frozenset(Feature) - {Feature.JOINS, Feature.LEAVES, Feature.READS}
    capabilities = frozenset(Need)

    def world(self, seed: int, vocab: int, dtype: str) -> HFWorld:
        return HFWorld(seed, vocab, dtype)
