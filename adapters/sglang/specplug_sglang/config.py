"""The words of `--specplug-config`: the same as `Speculator`'s, as JSON, in a file, or in SPECPLUG_CONFIG."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from specplug import OptionError, Speculator
from specplug.errors import unknown_name

VARIABLE = "SPECPLUG_CONFIG"
WORDS = {
    "drafter": str,
    "draft_model": str,
    "kv_policy": str,
    "tree": str,
    "controller": str,
    "seed": int,
    "profile": str,
}


def read_config(given: str | Mapping[str, Any] | None) -> dict[str, Any]:
    """The words of `given` (JSON text, a path to a JSON file, or a mapping); of SPECPLUG_CONFIG if it is None.

    Raises `OptionError` for what is not JSON, a word that is not known or a value of another type.
    """
    source = "--specplug-config" if given is not None else VARIABLE
    given = os.environ.get(VARIABLE) if given is None else given
    if given is None or given == "":
        return {}
    words = dict(given) if isinstance(given, Mapping) else _parse(given, source)
    for word, value in words.items():
        if word == "kernel":
            raise OptionError(
                f"{source}: the server's kernels are chosen with --attention-backend; leave 'kernel' out."
            )
        if word not in WORDS:
            raise unknown_name(f"word of {source}", word, WORDS)
        if not isinstance(value, WORDS[word]) or isinstance(value, bool):
            raise OptionError(f"{source}: {word} must be {_KINDS[WORDS[word]]}, got {value!r}.")
    return words


_KINDS = {str: "a text", int: "a whole number"}


def _parse(text: str, source: str) -> dict[str, Any]:
    if not text.lstrip().startswith("{"):
        path = Path(text).expanduser()
        if not path.is_file():
            raise OptionError(f"{source}: {text!r} is neither a JSON object nor a file.")
        source, text = str(path), path.read_text()
    try:
        words = json.loads(text)
    except json.JSONDecodeError as error:
        raise OptionError(f"{source}: not valid JSON: {error}.") from error
    if not isinstance(words, dict):
        raise OptionError(f"{source}: expected a JSON object, got {type(words).__name__}.")
    return words


def speculator_of(words: Mapping[str, Any], draft_model: str | None = None) -> Speculator:
    """The Speculator that `words` describe; `draft_model` is `--speculative-draft-model-path`.

    Raises `SpecplugError` for whatever is wrong with the words.
    """
    words = dict(words)
    if draft_model is not None:
        if words.get("draft_model", draft_model) != draft_model:
            raise OptionError(
                f"Two draft models: {words['draft_model']!r} in the configuration and {draft_model!r} as "
                "--speculative-draft-model-path; give one."
            )
        words["draft_model"] = draft_model
    return Speculator(**words)
