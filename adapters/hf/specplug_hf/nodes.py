"""Forwarding tree nodes through a transformers model over our store."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import Tensor
from transformers import Cache, PreTrainedModel

from specplug_hf.attention import AttentionSwap
from specplug_hf.compiled import CompiledForward
from specplug_hf.step import Step
from specplug_hf.store import KVStore, LayerKV

Storage = Callable[[Sequence[LayerKV], int], KVStore]


class NodeCache(Cache):
    """What the model sees as its cache during one forward of ours: writes the nodes' KV, hands out views of the store."""

    def __init__(self, store: KVStore, step: Step) -> None:
        super().__init__(layers=[])
        self._store, self._step = store, step

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        return self._store.write(layer_idx, key_states, value_states, self._step)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._step.total - self._step.num_new

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        # columns, of which a view may hold a part: patterns over the sequence must be as long
        return max(self._step.total, self._step.columns), 0

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return -1

    def __len__(self) -> int:
        return self._store.num_layers


class NodeForward:
    """Runs tree nodes through `model`. The model is left as it was found, also after an exception.

    `swap` None: the model does not take a registered attention; it gets a 4-D additive mask of the whole width.
    `storage`: makes the stores that it runs over, of a prompt's layers and a capacity. `compiled`: linear layers and
    norms of a few rows may go through compiled kernels, while it is held.
    """

    def __init__(
        self, model: PreTrainedModel, swap: AttentionSwap | None, storage: Storage = KVStore, compiled: bool = False
    ) -> None:
        self.model, self.swap, self.storage, self.compiled = model, swap, storage, compiled
        self._compiled: CompiledForward | None = None
        self.forwards = 0
        self._tells_windows = False  # whether a layer has told its attention of a sliding window
        self._limit: int | None = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
        parameters = inspect.signature(model.forward).parameters
        self._fixed: dict[str, Any] = {"use_cache": True, "return_dict": True}
        if "return_dict" not in parameters and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            del self._fixed["return_dict"]

    @property
    def full_width(self) -> bool:
        """Whether masks must cover the whole width."""
        return self.swap is None or self.swap.own

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep our attention's name in the model's configuration, and compiled layers in it, for all forwards within."""
        compiled = CompiledForward(self.model) if self.compiled else None
        with (
            nullcontext() if self.swap is None else self.swap.held(),
            nullcontext() if compiled is None else compiled.held(),
        ):
            before, self._compiled = self._compiled, compiled
            try:
                yield
            finally:
                self._compiled = before

    def __call__(self, store: KVStore, step: Step, tokens: Tensor, positions: Tensor, **extra: Any) -> Any:
        """Forward `tokens` [B, n] at `positions` [B, n] (or [k, B, n]); their KV goes where `step` says."""
        store.reserve(step.total)
        self.forwards += 1
        if self._limit is not None and (step.columns > self._limit or step.replayed):
            # nodes beyond the model's last position cannot be accepted, but a table of positions must not be left
            positions = positions.clamp(max=self._limit - 1)
        inputs = dict(
            input_ids=tokens, position_ids=positions, past_key_values=NodeCache(store, step), **self._fixed, **extra
        )
        serving = None if self._compiled is None else self._compiled.for_rows(tokens.numel())
        if serving is None:
            return self._run(step, inputs)
        serving.begin()
        try:
            return self._run(step, inputs)
        finally:
            serving.end()

    def _run(self, step: Step, inputs: dict[str, Any]) -> Any:
        if self.swap is None:
            return self.model(attention_mask=step.causal_bias(self.model.dtype), **inputs)
        with self.swap(step):
            output = self.model(**inputs)
        self._tells_windows = step.check(self._tells_windows)
        return output
