"""`model.generate(..., assistant=...)`: one wrapper around `GenerationMixin.generate` that reads `assistant` and nothing else.

A call without it (and on a model without an attached Speculator) goes to the original untouched. `uninstall` takes the
wrapper off again.

This module imports neither transformers nor a module of ours that does: it is called while transformers is being imported,
perhaps by one of those modules.
"""

from __future__ import annotations

import functools
import importlib
import weakref
from typing import Any

_MARK = "__specplug_original__"
_attached: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()

# Ways of decoding that the caller chose: an attached default does not apply to them.
_CHOSEN = ("assistant_model", "custom_generate", "prompt_lookup_num_tokens", "assistant_early_exit")


def install() -> None:
    """Wrap `GenerationMixin.generate`. Idempotent."""
    mixin = _mixin()
    original = mixin.generate
    if hasattr(original, _MARK):
        return

    @functools.wraps(original)
    def generate(self: Any, *args: Any, **kwargs: Any) -> Any:
        if "assistant" in kwargs:
            assistant = kwargs.pop("assistant")
            if assistant is None:
                return original(self, *args, **kwargs)
            return _speculate(original, self, assistant, False, args, kwargs)
        default = _attached.get(self) if _attached else None
        if default is None or any(kwargs.get(name) is not None for name in _CHOSEN):
            return original(self, *args, **kwargs)
        return _speculate(original, self, default, True, args, kwargs)

    setattr(generate, _MARK, original)
    mixin.generate = generate


def uninstall() -> None:
    """Put the original `generate` back. Idempotent."""
    mixin = _mixin()
    original = getattr(mixin.generate, _MARK, None)
    if original is not None:
        mixin.generate = original


def attach(model: Any, assistant: Any) -> Any:
    """Make `assistant` the default of `model`; returns what was its default before."""
    importlib.import_module("specplug_hf.assistant").speculator_of(
        assistant
    )  # a bad one is refused now, not at the first call
    before = _attached.get(model)
    _attached[model] = assistant
    return before


def detach(model: Any, before: Any) -> None:
    """Undo `attach`."""
    if before is None:
        _attached.pop(model, None)
    else:
        _attached[model] = before


def _mixin() -> Any:
    return importlib.import_module("transformers.generation.utils").GenerationMixin


def _speculate(*call: Any) -> Any:
    return importlib.import_module("specplug_hf.serving").speculate(*call)
