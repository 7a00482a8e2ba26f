"""Framework adapters as the core sees them: found as plugins, installed when their framework is imported."""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
from collections.abc import Iterator
from typing import Any, Protocol

import wrapt

from specplug.errors import OptionError
from specplug.plugins import GROUP, plugins
from specplug.speculator import Speculator

logger = logging.getLogger(__name__)


class Adapter(Protocol):
    """One framework. Making it must not import the framework."""

    trigger: str  # the module whose import makes `install` possible

    def install(self) -> None:
        """Hook into the framework, which is imported by now. Idempotent."""
        ...

    def accepts(self, model: Any) -> bool:
        """Whether `attach` of this adapter is the one for `model`."""
        ...

    def attach(self, model: Any, speculator: Any) -> Any:
        """Make `speculator` the default of `model`; returns what `detach` needs to put back what was there."""
        ...

    def detach(self, model: Any, before: Any) -> None:
        """Undo `attach`."""
        ...


def install_own() -> None:
    """Arrange for our own distribution's adapters to be installed as soon as their framework is imported.

    Runs at `import specplug` and imports neither a framework nor a stranger's code: other plugins load on first use.
    """
    for point in importlib.metadata.entry_points(group=GROUP):
        if point.dist is not None and point.dist.name == "specplug":
            try:
                register = getattr(point.load(), "specplug_register_adapters", None)
                if register is not None:
                    register(register=lambda name, factory: _install_with(factory()))
            except Exception as error:  # the core works without; plugins() says so again when it is asked for
                logger.warning("specplug: adapter %r failed to load: %s: %s", point.name, type(error).__name__, error)


_arranged: set[str] = set()


def _install_with(adapter: Adapter) -> None:
    if adapter.trigger not in _arranged:
        _arranged.add(adapter.trigger)
        wrapt.register_post_import_hook(lambda module: adapter.install(), adapter.trigger)


class Attachment(contextlib.AbstractContextManager[Speculator]):
    """What `attach` returns: leave it for good, use it as a context manager, or call `detach()`."""

    def __init__(self, adapter: Adapter, model: Any, speculator: Any) -> None:
        self.speculator = speculator
        self._adapter, self._model = adapter, model
        self._before = adapter.attach(model, speculator)
        self._attached = True

    def detach(self) -> None:
        """Put back what was the model's default before. Idempotent."""
        if self._attached:
            self._attached = False
            self._adapter.detach(self._model, self._before)

    def __enter__(self) -> Any:
        return self.speculator

    def __exit__(self, *_: object) -> None:
        self.detach()


def attach(model: Any, speculator: Any = None) -> Attachment:
    """Make `speculator` (default: `Speculator()`) the default of `model` from now on: pipelines and servers profit.

    For good, or for a `with` block. Raises `OptionError` if no installed adapter knows the model's framework.
    """
    chosen = Speculator() if speculator is None else speculator
    for adapter in _adapters():
        if adapter.accepts(model):
            adapter.install()
            return Attachment(adapter, model, chosen)
    known = ", ".join(plugins().names("adapters")) or "none"
    raise OptionError(f"No installed adapter can attach to {type(model).__name__}; installed adapters: {known}.")


def _adapters() -> Iterator[Adapter]:
    for name in plugins().names("adapters"):
        yield plugins().get("adapters", name).factory()
