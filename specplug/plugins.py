"""The plugin manager: built-ins and strangers, registered through the same hooks, looked up by name.

Entry points (group `specplug`) load one at a time. One that fails is recorded and raises `PluginLoadError` only when
something is asked for that it might have provided.
"""

from __future__ import annotations

import importlib.metadata
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pluggy

from specplug import hookspecs
from specplug.errors import PluginLoadError, unknown_name

GROUP = "specplug"
KINDS = ("drafters", "kv_policies", "trees", "controllers", "kernels", "adapters", "commands")
SINGULAR = {"kv_policies": "KV policy"}

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Plugin:
    """One registered name: what makes it, and where it came from."""

    kind: str
    name: str
    factory: Callable[..., Any]
    source: str


class Plugins:
    """All plugins of this process. Use the module's `plugins()`; a test may build its own."""

    def __init__(self, load_entry_points: bool = True) -> None:
        self.manager = pluggy.PluginManager("specplug")
        self.manager.add_hookspecs(hookspecs)
        self.failed: dict[str, str] = {}
        self._tables: dict[str, dict[str, Plugin]] = {kind: {} for kind in KINDS}
        from specplug import builtin  # noqa: PLC0415  (built-ins import the package that this module serves)

        self.register(builtin, "specplug")
        if load_entry_points:
            self._load_entry_points()

    def register(self, module: Any, source: str) -> None:
        """Register a plugin (a module or an object with hook implementations) and collect its names."""
        if self.manager.is_registered(module):
            raise PluginLoadError(f"{source}: registered already, as {self.manager.get_name(module)}.")
        try:
            self.manager.register(module, source)
            self.manager.check_pending()
            self._check_decorated(module, source)
            others = [plugin for plugin in self.manager.get_plugins() if plugin is not module]
            hooks = {caller.name for caller in self.manager.get_hookcallers(module) or ()}
            for kind in KINDS:
                hook = f"specplug_register_{kind}"
                if hook in hooks:
                    self.manager.subset_hook_caller(hook, others)(register=self._adder(kind, source))
        except Exception:
            if self.manager.is_registered(module):
                self.manager.unregister(module)
            for table in self._tables.values():
                for name in [name for name, plugin in table.items() if plugin.source == source]:
                    del table[name]
            raise

    def _check_decorated(self, module: Any, source: str) -> None:
        """A register function without its decorator would be passed over in silence."""
        for kind in KINDS:
            hook = f"specplug_register_{kind}"
            if hasattr(module, hook) and self.manager.parse_hookimpl_opts(module, hook) is None:
                raise PluginLoadError(f"{source}: {hook} lacks the decorator @specplug.hookimpl.")

    def _adder(self, kind: str, source: str) -> Callable[[str, Callable[..., Any]], None]:
        def add(name: str, factory: Callable[..., Any]) -> None:
            taken = self._tables[kind].get(name)
            if taken is not None:
                raise PluginLoadError(f"{source}: the name {name!r} among {kind} is taken by {taken.source}.")
            self._tables[kind][name] = Plugin(kind, name, factory, source)

        return add

    def _load_entry_points(self) -> None:
        for point in importlib.metadata.entry_points(group=GROUP):
            package = f" {point.dist.name} {point.dist.version}" if point.dist is not None else ""
            source = f"{point.value}{package and f' ({package.strip()})'}"
            if self.manager.has_plugin(source):
                continue  # the same distribution found twice on the path
            try:
                self.register(point.load(), source)
            except Exception as error:  # a stranger's code: one that fails must not take the others along
                reason = f"{source}: {type(error).__name__}: {error}"
                self.failed[source if point.name in self.failed else point.name] = reason
                logger.warning("specplug: entry point %r failed to load: %s", point.name, reason)

    def get(self, kind: str, name: str) -> Plugin:
        """The plugin called `name`. Unknown: an error with the nearest and all known names, and what failed to load."""
        plugin = self._tables[kind].get(name)
        if plugin is not None:
            return plugin
        if name in self.failed:
            raise PluginLoadError(f"Plugin {name!r} failed to load: {self.failed[name]}")
        error = unknown_name(SINGULAR.get(kind, kind.removesuffix("s")), name, self.names(kind))
        if self.failed:
            listed = "; ".join(f"{point}: {reason}" for point, reason in self.failed.items())
            raise PluginLoadError(f"{error} Entry points that failed to load: {listed}")
        raise error

    def names(self, kind: str) -> list[str]:
        """All names of a kind, sorted."""
        return sorted(self._tables[kind])

    def all(self) -> list[Plugin]:
        """Every plugin, by kind, then name."""
        return [self._tables[kind][name] for kind in KINDS for name in self.names(kind)]


_lock = threading.RLock()
_loading = False


@lru_cache(maxsize=1)
def _loaded() -> Plugins:
    return Plugins()


def plugins() -> Plugins:
    """The process's plugins, loaded on first use."""
    global _loading  # noqa: PLW0603  (guarded by the lock)
    with _lock:
        if _loading:  # the same thread: a plugin's own code, while it is being loaded
            raise PluginLoadError(
                "A plugin asked for plugins while it was being loaded; ask when it is used, not before."
            )
        _loading = True
        try:
            return _loaded()
        finally:
            _loading = False


def round_listeners() -> Callable[..., Any] | None:
    """The `specplug_round_finished` hook if anybody implements it, else None: nobody pays for an unheard call."""
    hook = plugins().manager.hook.specplug_round_finished
    return hook if hook.get_hookimpls() else None
