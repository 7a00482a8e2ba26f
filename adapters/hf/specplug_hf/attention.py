"""Our attention inside a model's forward, through transformers' own registries, and only for our own forwards.

While a forward of ours runs, the model's configuration names the implementation `specplug`; the attention function and
the mask function registered under that name find the current `Step` in a thread-local. A forward that is not ours (a
plain `generate` of the same model in another thread) finds none and gets what the model had before.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, causal_mask_function
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from specplug import UnsupportedError
from specplug_hf.paged.step import PagedStep
from specplug_hf.step import Step
from specplug_kernels import ScoreRule, tree_attention

NAME = "specplug"

# What an attention call may carry that our kernel does not compute: the model's own implementation serves then.
_UNSERVED = frozenset({"softcap", "s_aux", "position_bias", "sinks", "cache"})


QueryWatch = Callable[[nn.Module, Tensor, "float | None"], None]


class _Current(threading.local):
    step: Step | PagedStep | None = None
    kernel: str = "auto"
    own: bool = False  # the model's own attention must serve (weights were asked for, or ours lacks something)
    watch: QueryWatch | None = None  # sees every query


_current = _Current()
_lock = threading.Lock()
_swapped: dict[int, tuple[Any, int]] = {}  # id(config) -> implementation before, number of forwards inside


def register() -> None:
    """Put our functions into transformers' registries. Idempotent."""
    AttentionInterface.register(NAME, attention_forward)
    AttentionMaskInterface.register(NAME, mask_forward)


class AttentionSwap:
    """Names our implementation in a model's configurations for the time of a forward.

    `own`: the model's own implementation computes, with our masks (soft-capping, sinks, a head dimension ours lacks).
    """

    def __init__(self, model: PreTrainedModel, kernel: str = "auto", own: bool = False) -> None:
        register()
        self.kernel, self.own = kernel, own
        configs = {id(c): c for m in model.modules() if (c := getattr(m, "config", None)) is not None}
        self._configs = [c for c in configs.values() if hasattr(c, "_attn_implementation_internal")]
        self.holds = 0

    def __call__(self, step: Step) -> _OurForward:
        """A context in which our attention serves `step`; everything is put back afterwards, also after an exception."""
        return _OurForward(self, step)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep our name in place for the forwards of a whole generation: entering each is then a few assignments."""
        self._enter()
        self.holds += 1
        try:
            yield
        finally:
            self.holds -= 1
            self._leave()

    def _enter(self) -> None:
        with _lock:
            for config in self._configs:
                original, inside = _swapped.get(id(config), (config._attn_implementation_internal, 0))
                _swapped[id(config)] = (original, inside + 1)
                config._attn_implementation_internal = NAME

    def _leave(self) -> None:
        with _lock:
            for config in self._configs:
                original, inside = _swapped.pop(id(config))
                if inside > 1:
                    _swapped[id(config)] = (original, inside - 1)
                else:
                    config._attn_implementation_internal = original


class _OurForward:
    """One forward of ours; a class, since it is entered several times a round."""

    __slots__ = ("_before", "_entered", "_step", "_swap")

    def __init__(self, swap: AttentionSwap, step: Step) -> None:
        self._swap, self._step = swap, step

    def __enter__(self) -> None:
        swap, current = self._swap, _current
        self._entered = not swap.holds
        if self._entered:
            swap._enter()
        self._before = (current.step, current.kernel, current.own)
        current.step, current.kernel, current.own = self._step, swap.kernel, swap.own

    def __exit__(self, *_: object) -> None:
        _current.step, _current.kernel, _current.own = self._before
        if self._entered:
            self._swap._leave()


@contextmanager
def watch_queries(watch: QueryWatch) -> Iterator[None]:
    """Show `watch` every layer's query [B, Hq, n, D] of this thread's forwards within, with its module and its scale."""
    before, _current.watch = _current.watch, watch
    try:
        yield
    finally:
        _current.watch = before


def original_implementation(config: Any) -> str:
    """The implementation that `config` named before a forward of ours began."""
    with _lock:  # or our own name might be seen, put there by another thread, after it took its note away
        entry = _swapped.get(id(config))
        name = entry[0] if entry is not None else config._attn_implementation_internal
    return name or "eager"


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """transformers' attention interface: query [B, Hq, n, D], key and value [B, Hkv, T, D] -> ([B, n, Hq, Dv], weights)."""
    step = _current.step
    if _current.watch is not None:
        _current.watch(module, query, scaling)
    if isinstance(step, PagedStep):
        return step.attend(query, key, value, _rule(query, scaling, kwargs)), None
    if step is None or _current.own or _asks_for_more(kwargs):
        return _own_attention(module, query, key, value, attention_mask, scaling, dropout, step, **kwargs)
    total = key.shape[2]
    prefix = total if attention_mask is None else total - attention_mask.shape[-1]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    out = tree_attention(query, key, value, prefix=prefix, bias=attention_mask, scale=scale, kernel=_current.kernel)
    return out, None


def _rule(query: Tensor, scaling: float | None, kwargs: dict[str, Any]) -> ScoreRule:
    """What a layer tells its attention, as paged kernels take it."""
    unserved = [name for name in ("position_bias", "cache", "sinks") if kwargs.get(name) is not None]
    if unserved:
        raise UnsupportedError(f"Kernels over a paged cache do not serve {', '.join(unserved)}; use kernel='auto'.")
    sinks = kwargs.get("s_aux")
    return ScoreRule(
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        logit_cap=kwargs.get("softcap"),
        window=kwargs.get("sliding_window"),
        sinks=None if sinks is None else sinks.float(),
    )


def _asks_for_more(kwargs: dict[str, Any]) -> bool:
    """Whether the call carries what our kernel does not compute; asked in every layer, and nearly always not."""
    return not _UNSERVED.isdisjoint(kwargs) and any(kwargs.get(name) is not None for name in _UNSERVED)


def _own_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None,
    dropout: float,
    step: Step | None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """What the model would have run, with a mask of the whole width."""
    eager = sys.modules[type(module).__module__].__dict__.get("eager_attention_forward")
    interface: Callable[..., tuple[Tensor, Tensor | None]] = ALL_ATTENTION_FUNCTIONS.get_interface(
        original_implementation(getattr(module, "config", None)), eager
    )
    if step is not None:
        attention_mask = _whole_width(attention_mask, key.shape[2], step, query.dtype)
        kwargs = kwargs | {"is_causal": False}
    return interface(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs)


def _whole_width(mask: Tensor | None, total: int, step: Step, dtype: torch.dtype) -> Tensor:
    if mask is None:
        return torch.zeros((1, 1, step.num_new, total), dtype=dtype, device=step.device)
    missing = total - mask.shape[-1]
    return nn.functional.pad(mask, (missing, 0)) if missing else mask


def mask_forward(*args: Any, mask_function: Any = causal_mask_function, **kwargs: Any) -> Tensor | None:
    """transformers' mask interface: the additive mask of the current step, or the model's own if the forward is not ours."""
    step = _current.step
    config = kwargs.get("config")
    if step is None:
        own = ALL_MASK_ATTENTION_FUNCTIONS[original_implementation(config)]
        return own(*args, mask_function=mask_function, **kwargs)
    if isinstance(step, PagedStep):
        step.patterned |= mask_function is not causal_mask_function
        return None
    dtype = kwargs.get("dtype") or torch.float32
    if mask_function is causal_mask_function:
        return step.causal_bias(dtype)
    return step.bias(mask_function, dtype)
