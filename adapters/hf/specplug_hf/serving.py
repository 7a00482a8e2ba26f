"""One call of `generate` with an assistant: checked, then run by transformers with our decoding in the place of its own."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, StoppingCriteriaList, StopStringCriteria

from specplug import OptionError, UnsupportedError
from specplug_hf.assistant import speculator_of
from specplug_hf.generation import generate as own_door
from specplug_hf.generation import prepare
from specplug_hf.support import check_call

logger = logging.getLogger(__name__)


class _NotServedError(Exception):
    """An attached default cannot serve this call: plain generation does."""


def speculate(
    original: Callable[..., Any],
    model: PreTrainedModel,
    assistant: Any,
    is_default: bool,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Call the original with our decoding method in the place of its own."""
    speculator = speculator_of(assistant)
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
