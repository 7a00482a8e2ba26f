"""Every error specplug raises on purpose: one base, one line each, naming the value, the plugin and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SpecplugError(Exception):
    """Base of every error raised by specplug and its adapters."""


class UnknownNameError(SpecplugError, LookupError):
    """A plugin or option name that nobody registered."""


class OptionError(SpecplugError, ValueError):
    """An option or argument whose value cannot be used."""


class PluginLoadError(SpecplugError):
    """An entry point that failed to load; raised only when something it might have provided is asked for."""


class UnsupportedError(SpecplugError):
    """A request that cannot be served losslessly; the message names the cause and the remedy."""


class ProposalError(SpecplugError):
    """A drafter returned something that is not a valid proposal."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UnknownNameError:
    """The error for an unknown `name` of a `kind` ("drafter", "option of drafter 'self'", ...): nearest and all known."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    listed = ", ".join(known) if known else "none"
    return UnknownNameError(f"Unknown {kind} {name!r}.{hint} Known: {listed}.")
