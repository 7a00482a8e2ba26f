"""Specification strings: `name` or `name:key=value,key=value`, the same words in Python, on a command line and in a file."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from specplug.errors import OptionError, SpecplugError, unknown_name
from specplug.plugins import SINGULAR, plugins


def parse(text: str) -> tuple[str, dict[str, int | float | bool | str]]:
    """Split `name:key=value,...`; values become int, float, bool or stay text. Nothing is evaluated."""
    name, options = _split(text)
    return name, {key: _value(value) for key, value in options.items()}


def _split(text: str) -> tuple[str, dict[str, str]]:
    name, _, tail = text.strip().partition(":")
    options: dict[str, str] = {}
    for part in filter(None, (piece.strip() for piece in tail.split(","))):
        key, equals, value = part.partition("=")
        if not equals or not key.strip() or not value.strip():
            raise OptionError(f"Cannot read {part!r} in {text!r}: write name:key=value,key=value.")
        if key.strip() in options:
            raise OptionError(f"Option {key.strip()!r} stands twice in {text!r}.")
        options[key.strip()] = value.strip()
    return name.strip(), options


def _value(text: str) -> int | float | bool | str:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def build(kind: str, text: str, **extra: Any) -> Any:
    """Make the plugin that `text` names. `extra` are values of ours, passed only if the factory takes them."""
    name, texts = _split(text)
    plugin = plugins().get(kind, name)
    known = _parameters(plugin.factory)
    for option in texts:
        if option not in known:
            raise unknown_name(f"option of {SINGULAR.get(kind, kind.removesuffix('s'))} {name!r}", option, known)
    options = {key: _typed(text, key, value, known[key].annotation) for key, value in texts.items()}
    given = {key: value for key, value in extra.items() if key in known and key not in options}
    try:
        return plugin.factory(**options, **given)
    except SpecplugError:
        raise
    except (TypeError, ValueError) as error:
        raise OptionError(f"{text!r}: {error}") from error


def _parameters(factory: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(factory).parameters
    except ValueError:  # something built in that does not say what it takes
        return {}


def _typed(text: str, option: str, value: str, annotation: Any) -> int | float | bool | str:
    """`value` as the plain type the plugin declares for it; by its looks if it declares another or none."""
    declared = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
    guess = _value(value)
    if declared == "str":
        return value
    if declared == "float" and type(guess) is int:
        return float(guess)
    if declared in ("int", "float", "bool") and type(guess).__name__ != declared:
        raise OptionError(f"{text!r}: {option}={value} must be {_ARTICLES[declared]}.")
    return guess


_ARTICLES = {"int": "a whole number", "float": "a number", "bool": "true or false"}
