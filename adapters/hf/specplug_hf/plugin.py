"""The entry point: the adapter and its commands. Imports no framework."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterable
from typing import Any

from specplug.hookspecs import Register, hookimpl


class TransformersAdapter:
    """Hugging Face transformers."""

    trigger = "transformers.generation.utils"

    def install(self) -> None:
        _patch().install()

    def accepts(self, model: Any) -> bool:
        return any(
            cls.__name__ == "GenerationMixin" and cls.__module__.startswith("transformers.")
            for cls in type(_inside(model)).__mro__
        )

    def attach(self, model: Any, speculator: Any) -> Any:
        return _patch().attach(_inside(model), speculator)

    def detach(self, model: Any, before: Any) -> None:
        _patch().detach(_inside(model), before)


def _inside(model: Any) -> Any:
    """The model whose `generate` is called in the end: a PEFT wrapper hands the call on."""
    inner = getattr(model, "get_base_model", None)
    return inner() if callable(inner) else model


def _patch() -> Any:
    return importlib.import_module("specplug_hf.patch")


@hookimpl
def specplug_register_adapters(register: Register) -> None:
    register("hf", TransformersAdapter)


def _kernel(name: str, what: str) -> Callable[[], str]:
    def kernel() -> str:
        return name

    kernel.__doc__ = what
    return kernel


@hookimpl
def specplug_register_kernels(register: Register) -> None:
    from specplug_hf.kernels import KERNELS  # noqa: PLC0415  (not at `import specplug`)

    for name, what in KERNELS.items():
        register(name, _kernel(name, what))


@hookimpl
def specplug_register_commands(register: Register) -> None:
    for name in ("demo", "bench", "calibrate", "policies", "roofline", "trace", "train"):
        register(name, importlib.import_module(f"specplug_hf.commands.{name}").add_parser)


@hookimpl
def specplug_conformance_cases() -> Iterable[Any]:
    if importlib.util.find_spec("transformers") is None:
        return ()
    from specplug_conformance import Case  # noqa: PLC0415  (called by the suite only)

    return [Case("hf", "adapter", _subject)]


def _subject() -> Any:
    """Made when it is used: it imports transformers."""
    return importlib.import_module("specplug_hf.conformance.subject").HFSubject()
