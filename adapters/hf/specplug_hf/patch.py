"""`model.generate(..., assistant=...)`: one wrapper around `GenerationMixin.generate` that reads `assistant` and nothing else.

A call without it (and on a model without an attached Speculator) goes to the original untouched. `uninstall` takes the
wrapper off again.
"""

from __future__ import annotations

import copy
import functools
import inspect
import logging
import weakref
from collections.abc import Callable
from typing import Any

from specplug import OptionError, Speculator, UnsupportedError
from transformers import GenerationMixin, PreTrainedModel, StoppingCriteriaList, StopStringCriteria
from transformers.generation.utils import GENERATION_MODES_MAPPING

from specplug_hf.assistant import speculator_of
from specplug_hf.generate import decode

logger = logging.getLogger(__name__)

_MARK = "__specplug_original__"
_attached: weakref.WeakKeyDictionary[PreTrainedModel, Any] = weakref.WeakKeyDictionary()

# Ways of decoding that the caller chose: an attached default does not apply to them.
_CHOSEN = ("assistant_model", "custom_generate", "prompt_lookup_num_tokens", "assistant_early_exit")


def install() -> None:
    """Wrap `GenerationMixin.generate`. Idempotent."""
    original = GenerationMixin.generate
    if hasattr(original, _MARK):
        return

    @functools.wraps(original)
    def generate(self: PreTrainedModel, *args: Any, **kwargs: Any) -> Any:
        if "assistant" in kwargs:
            assistant = kwargs.pop("assistant")
            if assistant is None:
                return original(self, *args, **kwargs)
            return _speculate(original, self, speculator_of(assistant), False, args, kwargs)
        default = _attached.get(self) if _attached else None
        if default is None or any(kwargs.get(name) is not None for name in _CHOSEN):
            return original(self, *args, **kwargs)
        return _speculate(original, self, speculator_of(default), True, args, kwargs)

    setattr(generate, _MARK, original)
    GenerationMixin.generate = generate  # type: ignore[method-assign]


def uninstall() -> None:
    """Put the original `generate` back. Idempotent."""
    original = getattr(GenerationMixin.generate, _MARK, None)
    if original is not None:
        GenerationMixin.generate = original  # type: ignore[method-assign]


def attach(model: PreTrainedModel, assistant: Any) -> Any:
    """Make `assistant` the default of `model`; returns what was its default before."""
    speculator_of(assistant)  # a bad one is refused now, not at the first call
    before = _attached.get(model)
    _attached[model] = assistant
    return before


def detach(model: PreTrainedModel, before: Any) -> None:
    """Undo `attach`."""
    if before is None:
        _attached.pop(model, None)
    else:
        _attached[model] = before


def _speculate(
    original: Callable[..., Any],
    model: PreTrainedModel,
    speculator: Speculator,
    is_default: bool,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Call the original with our decoding method in the place of its own."""
    named = _by_name(original, model, args, kwargs)
    if named.get("assistant_model") is not None or named.get("custom_generate") is not None:
        raise OptionError("Pass either assistant= or transformers' assistant_model= / custom_generate=, not both.")
    streamer = named.get("streamer")
    tokenizer = named.get("tokenizer")

    def decode_by_rounds(model: PreTrainedModel, input_ids: Any, **call: Any) -> Any:
        try:
            return decode(model, input_ids, speculator, streamer=streamer, **call)
        except UnsupportedError as error:
            if not is_default:
                raise
            logger.warning("specplug: plain generation for this call: %s", error)
            return _plain(model, input_ids, streamer, call)

    with _StopStrings(model, named, tokenizer):
        return original(model, **named, custom_generate=decode_by_rounds)


def _by_name(
    original: Callable[..., Any], model: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """The call's arguments by name, `self` left out."""
    names = list(inspect.signature(original).parameters)[1 : len(args) + 1]
    return dict(zip(names, args, strict=True)) | kwargs


def _plain(model: PreTrainedModel, input_ids: Any, streamer: Any, call: dict[str, Any]) -> Any:
    """What transformers would have run, for a call that an attached default cannot serve."""
    mode = call["generation_config"].get_generation_mode(None)
    method = getattr(type(model), GENERATION_MODES_MAPPING[mode])
    return method(model, input_ids, streamer=streamer, **call) if streamer else method(model, input_ids, **call)


class _StopStrings:
    """transformers drops the tokenizer on the way to a `custom_generate`: hand stop strings over as a criterion instead."""

    def __init__(self, model: PreTrainedModel, named: dict[str, Any], tokenizer: Any) -> None:
        self._model = model
        self._saved: Any = None
        config = named.get("generation_config")
        sources = (named.get("stop_strings"), getattr(config, "stop_strings", None), model.generation_config.stop_strings)
        strings = next((s for s in sources if s is not None), None)
        if strings is None:
            return
        if tokenizer is None:
            raise OptionError(f"stop_strings={strings!r} needs tokenizer= in the same call.")
        named.pop("stop_strings", None)
        if config is not None:
            named["generation_config"] = copy.copy(config)
            named["generation_config"].stop_strings = None
        self._saved = model.generation_config.stop_strings
        criteria = StoppingCriteriaList(named.get("stopping_criteria") or [])
        criteria.append(StopStringCriteria(stop_strings=strings, tokenizer=tokenizer))
        named["stopping_criteria"] = criteria

    def __enter__(self) -> None:
        if self._saved is not None:
            self._model.generation_config.stop_strings = None

    def __exit__(self, *_: object) -> None:
        if self._saved is not None:
            self._model.generation_config.stop_strings = self._saved
