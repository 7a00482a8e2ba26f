"""What `assistant=` may be, and the Speculator each of them means."""

from __future__ import annotations

import threading
import types
import weakref
from typing import Any

from transformers import PreTrainedModel

import specplug
from specplug import OptionError, Speculator
from specplug.controllers import Memory
from specplug.drafters import Drafter
from specplug_hf.support import unwrapped

# Only what was learnt is kept for a draft model: a Speculator would keep the model alive.
_memories: weakref.WeakKeyDictionary[PreTrainedModel, Memory] = weakref.WeakKeyDictionary()
_of_names: dict[str, Speculator] = {}
_lock = threading.Lock()


def speculator_of(assistant: Any) -> Speculator:
    """The Speculator meant by `assistant`: the module (or None), a Speculator, a drafter or its name, a draft model.

    Names and models keep their Speculator, so that what it has learnt serves the next call.
    """
    if assistant is None or assistant is specplug:
        return specplug.default_speculator()
    if isinstance(assistant, Speculator):
        return assistant
    if isinstance(assistant, Drafter):
        return Speculator(drafter=assistant)
    assistant = unwrapped(assistant)
    with _lock:
        if isinstance(assistant, str):
            return _of_names.setdefault(assistant, Speculator(drafter=assistant))
        if isinstance(assistant, PreTrainedModel):
            memory = _memories.setdefault(assistant, Memory())
            return Speculator(drafter="model", draft_model=assistant).remembering(memory)
    what = f"module {assistant.__name__!r}" if isinstance(assistant, types.ModuleType) else type(assistant).__name__
    raise OptionError(
        f"assistant= takes the module specplug, a Speculator, a drafter or its name, or a PreTrainedModel; got {what}."
    )
