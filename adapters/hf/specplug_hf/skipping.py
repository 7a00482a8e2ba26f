"""Leaving sublayers out of a model's forward, for the forwards of one thread (SWIFT, arXiv 2410.06916).

A sublayer that is left out returns zeros, so that the residual stream passes it by, and writes nothing to the cache; its layer's
norms run still, and are cheap. That this is all a layer does with them is not taken for granted: it is looked at.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from specplug import OptionError, UnsupportedError
from specplug.host import SkippedLayers
from specplug_hf.bypass import Bypass, Parts, given
from specplug_hf.support import device_of

_LAYERS = ("layers", "h")
_NAMES = {  # of a layer's sublayers, in transformers' families
    "attention": ("self_attn", "self_attention", "attention", "attn"),
    "mlp": ("mlp", "feed_forward", "block_sparse_moe"),
}
_REMEDY = "choose another drafter, such as 'self'"

_known: weakref.WeakKeyDictionary[PreTrainedModel, dict[SkippedLayers, Parts]] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


class LayerSkipping(Bypass):
    """A context in which this thread's forwards of `model` leave `skipped` out; see `Bypass`. Raises what `check_layers` raises."""

    def __init__(self, model: PreTrainedModel, skipped: SkippedLayers) -> None:
        parts = check_layers(model, skipped)
        super().__init__(_sublayers(model, skipped), parts)


def num_layers(model: PreTrainedModel) -> int:
    """Decoder layers of `model`."""
    return len(_layers(model))


def check_layers(model: PreTrainedModel, skipped: SkippedLayers) -> Parts:
    """What the sublayers `skipped` of `model` return.

    Raises `OptionError` for a layer that there is not, `UnsupportedError` for a model from which sublayers cannot be left out.
    Costs two forwards of two tokens, once a model object and choice.
    """
    with _lock:
        known = _known.setdefault(model, {})
    if skipped not in known:
        known[skipped] = _examined(model, skipped)
    return known[skipped]


def _layers(model: PreTrainedModel) -> nn.ModuleList:
    decoder = model.get_decoder()
    for name in _LAYERS:
        layers = getattr(decoder, name, None)
        if isinstance(layers, nn.ModuleList):
            return layers
    raise UnsupportedError(f"layer_skip: no decoder layers are found in {type(model).__name__}; {_REMEDY}.")


def _sublayers(model: PreTrainedModel, skipped: SkippedLayers) -> list[nn.Module]:
    chosen = {"attention": skipped.attention, "mlp": skipped.mlp}
    return [_sublayer(model, kind, layer) for kind, layers in chosen.items() for layer in sorted(layers)]


def _sublayer(model: PreTrainedModel, kind: str, index: int) -> nn.Module:
    layers = _layers(model)
    if not 0 <= index < len(layers):
        raise OptionError(
            f"layer_skip: there is no layer {index} in {type(model).__name__}; its layers are 0 to {len(layers) - 1}."
        )
    for name in _NAMES[kind]:
        module = getattr(layers[index], name, None)
        if isinstance(module, nn.Module):
            return module
    raise UnsupportedError(
        f"layer_skip: layer {index} of {type(model).__name__}, a {type(layers[index]).__name__}, has no {kind} of its own "
        f"({', '.join(_NAMES[kind])}); {_REMEDY}."
    )


@torch.no_grad()
def _examined(model: PreTrainedModel, skipped: SkippedLayers) -> Parts:
    """Look at what sublayers return, and whether a layer without both of them returns what it is given."""
    indices = skipped.attention | skipped.mlp
    sublayers = _sublayers(model, SkippedLayers(indices, indices))
    layers = {index: _layers(model)[index] for index in sorted(indices)}
    try:
        calls = _calls(model, sublayers)
        parts = {key: len(output) if isinstance(output, tuple) else 0 for key, (_, output) in calls.items()}
        with Bypass(sublayers, parts):
            calls = _calls(model, list(layers.values()))
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as failure:
        raise UnsupportedError(
            f"layer_skip: {type(model).__name__} does not run without its sublayers ({type(failure).__name__}: {failure}); "
            f"{_REMEDY}."
        ) from failure
    for index, layer in layers.items():
        hidden, output = calls[id(layer)]
        output = output[0] if isinstance(output, tuple) else output
        if not torch.equal(output, hidden):
            raise UnsupportedError(
                f"layer_skip: layer {index} of {type(model).__name__} does more than add its attention and its MLP to what "
                f"comes in; {_REMEDY}."
            )
    return parts


def _calls(model: PreTrainedModel, modules: list[nn.Module]) -> dict[int, tuple[Tensor, Any]]:
    """Run two tokens through `model`: the hidden states that each of `modules` was given, and what it returned."""
    calls: dict[int, tuple[Tensor, Any]] = {}
    thread = threading.get_ident()  # another thread's forwards pass the hooks as well

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if threading.get_ident() == thread:
            calls[id(module)] = (given(args, kwargs), output)

    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    tokens = torch.tensor([[vocabulary // 3, vocabulary // 2]], device=device_of(model))
    with _hooked(modules, note):
        model(input_ids=tokens, use_cache=False)
    return calls


@contextmanager
def _hooked(modules: list[nn.Module], hook: Callable[..., None]) -> Iterator[None]:
    handles = [module.register_forward_hook(hook, with_kwargs=True) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
