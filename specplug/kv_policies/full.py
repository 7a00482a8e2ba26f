"""`full`: the draft reads the whole cache."""

from __future__ import annotations

from dataclasses import dataclass

from specplug.kv_policies.base import KVPolicy


@dataclass(frozen=True, slots=True)
class Full(KVPolicy):
    """Read everything that was committed: the right choice for a small draft model at short contexts."""
