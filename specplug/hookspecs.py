"""The hooks a plugin may implement. Entry-point group: `specplug`. Hooks run at set-up, never per token.

`register(name, factory)`: `name` is what users write; `factory` is called with the options of the specification string
(`name:key=value,...`) as keyword arguments. A dataclass is its own factory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from specplug.round import Round

hookspec = pluggy.HookspecMarker("specplug")
hookimpl = pluggy.HookimplMarker("specplug")

Register = Callable[[str, Callable[..., Any]], None]


@hookspec
def specplug_register_drafters(register: Register) -> None:
    """Register drafters: factories of `specplug.Drafter`."""


@hookspec
def specplug_register_kv_policies(register: Register) -> None:
    """Register KV policies: factories of `specplug.KVPolicy`."""


@hookspec
def specplug_register_trees(register: Register) -> None:
    """Register tree builders: factories of `specplug.TreeBuilder`."""


@hookspec
def specplug_register_controllers(register: Register) -> None:
    """Register controllers: factories of `specplug.Controller`."""


@hookspec
def specplug_register_kernels(register: Register) -> None:
    """Register attention kernels by name, for `Speculator(kernel=name)`."""


@hookspec
def specplug_register_adapters(register: Register) -> None:
    """Register framework adapters: factories of `specplug.adapters.Adapter`."""


@hookspec
def specplug_register_commands(register: Register) -> None:
    """Register subcommands of `specplug`: `factory(subparsers)` adds an argparse parser with a `run` default."""


@hookspec
def specplug_conformance_cases() -> Iterable[Any]:
    """Cases that the conformance suite runs besides its own."""
    return ()


@hookspec
def specplug_round_finished(event: Round) -> None:
    """A round has finished. Called only when somebody listens."""
