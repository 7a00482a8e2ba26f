"""`model.generate(..., assistant=...)`: one wrapper around `GenerationMixin.generate` that reads `assistant` and nothing else.

A call without it (and on a model without an attached Speculator) goes to the original untouched. `uninstall` takes the
wrapper off again.
"""

from __future__ import annotations

import functools
import inspect
import logging
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from specplug import OptionError, Speculator, UnsupportedError
from torch import Tensor
from transformers import GenerationMixin, PreTrainedModel, StoppingCriteriaList, StopStringCriteria

from specplug_hf.assistant import speculator_of
from specplug_hf.generation import generate as own_door
from specplug_hf.generation import prepare
from specplug_hf.support import check_call

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


class _NotServedError(Exception):
    """An attached default cannot serve this call: plain generation does."""


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
    if named.get("custom_generate") is own_door:
        named.pop("custom_generate")  # two doors to the same room
    if named.get("assistant_model") is not None or named.get("custom_generate") is not None:
        raise OptionError("Pass either assistant= or transformers' assistant_model= / custom_generate=, not both.")

    def decode_by_rounds(model: PreTrainedModel, input_ids: Tensor, **call: Any) -> Any:
        with _refusing(is_default):
            generation = prepare(model, input_ids, speculator, **call)
        return generation.run(named.get("streamer"))

    try:
        with _refusing(is_default):
            check_call(model, named)
        ours = _with_stop_strings(model, named)
        # the streamer is ours to serve: it must not see the prompt of a call that is refused
        return original(model, **(ours | {"streamer": None}), custom_generate=decode_by_rounds)
    except _NotServedError as error:
        logger.warning("specplug: plain generation for this call: %s", error)
    return original(model, **named)


@contextmanager
def _refusing(is_default: bool) -> Iterator[None]:
    """Checks run here: what they refuse is an error if speculation was asked for, else a case for plain generation."""
    try:
        yield
    except UnsupportedError as error:
        if is_default:
            raise _NotServedError(str(error)) from None
        raise


def _by_name(
    original: Callable[..., Any], model: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """The call's arguments by name, `self` left out."""
    given = inspect.signature(original).bind(model, *args, **kwargs).arguments
    more = given.pop("kwargs", {})
    return dict(list(given.items())[1:]) | more


def _with_stop_strings(model: PreTrainedModel, named: dict[str, Any]) -> dict[str, Any]:
    """The call with its stop strings as a criterion: transformers drops the tokenizer on the way to a `custom_generate`."""
    config = named.get("generation_config")
    strings = named.get("stop_strings")
    if "stop_strings" not in named:
        strings = getattr(config, "stop_strings", None)
        strings = model.generation_config.stop_strings if strings is None else strings
    tokenizer = named.get("tokenizer")
    if strings is None or tokenizer is None:
        return named  # without a tokenizer transformers says what is missing
    criterion = StopStringCriteria(tokenizer=tokenizer, stop_strings=strings)
    criteria = StoppingCriteriaList([*(named.get("stopping_criteria") or ()), criterion])
    return named | {"stop_strings": None, "stopping_criteria": criteria}
