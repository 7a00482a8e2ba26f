"""The Speculator behind `assistant=specplug`: one for the process, so that it keeps what it has learnt."""

from __future__ import annotations

from functools import lru_cache

from specplug.speculator import Speculator
from specplug.stats import SpecStats


@lru_cache(maxsize=1)
def default_speculator() -> Speculator:
    """Everything on "auto"."""
    return Speculator()


def last_stats() -> SpecStats:
    """Statistics of the last call made with the module (`assistant=specplug`)."""
    return default_speculator().stats
