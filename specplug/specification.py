"""Specification strings: `name` or `name:key=value,key=value`, the same words in Python, on a command line and in a file."""

from __future__ import annotations

import inspect
from typing import Any

from specplug.errors import OptionError, SpecplugError, unknown_name
from specplug.plugins import Plugin, plugins


def parse(text: str) -> tuple[str, dict[str, int | float | bool | str]]:
    """Split `name:key=value,...`; values become int, float, bool or stay text. Nothing is evaluated."""
    name, _, tail = text.strip().partition(":")
    options: dict[str, int | float | bool | str] = {}
    for part in filter(None, (piece.strip() for piece in tail.split(","))):
        key, equals, value = part.partition("=")
        if not equals or not key.strip() or not value.strip():
            raise OptionError(f"Cannot read {part!r} in {text!r}: write name:key=value,key=value.")
        options[key.strip()] = _value(value.strip())
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
    name, options = parse(text)
    plugin = plugins().get(kind, name)
    known = _options(plugin)
    for option in options:
        if option not in known:
            raise unknown_name(f"option of {kind} plugin {name!r}", option, known)
    given = {key: value for key, value in extra.items() if key in known and key not in options}
    try:
        return plugin.factory(**options, **given)
    except SpecplugError:
        raise
    except (TypeError, ValueError) as error:
        raise OptionError(f"{text!r}: {error}") from error


def _options(plugin: Plugin) -> list[str]:
    """Names of the options a plugin takes."""
    return list(inspect.signature(plugin.factory).parameters)
