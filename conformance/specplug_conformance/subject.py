"""What an adapter supplies to be checked: how to run a prompt plain and speculated, and a look at its cache.

`Case(name, "adapter", factory)` from `specplug_conformance_cases()` names the factory of a `Subject`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from enum import StrEnum
from typing import Any, Protocol

from torch import Tensor

from specplug import Need, Round, Speculator
from specplug_conformance.request import Request


class Feature(StrEnum):
    """What a subject can do; a check that needs more is skipped there, visibly."""

    SAMPLING = "sampling"
    WARPERS = "warpers"  # temperature, top-k, top-p
    RULES = "rules"  # processors that read the prefix: `Request.rule`, `repetition_penalty`
    END_TOKENS = "end tokens"
    PADDING = "padding"
    CACHE = "cache"  # `State.cached` and `World.fresh`
    JOINS = "joins"  # rows that enter later
    LEAVES = "leaves"  # rows that are aborted
    READS = "reads"  # `State.draft_reads`
    FLOAT32 = "float32"
    FLOAT64 = "float64"


class State(Protocol):
    """A look into a generation, between two rounds."""

    def committed(self) -> dict[Hashable, list[int]]:
        """Tokens of every row in the batch, prompt included; the last one is the root."""
        ...

    def cached(self, row: Hashable) -> list[Tensor]:
        """What the cache holds for the row's committed tokens but the root: tensors [tokens, width], in token order."""
        ...

    def draft_reads(self, row: Hashable) -> int | None:
        """Most committed positions that a layer of the draft's last forward could see; None: nothing was drafted."""
        ...


# Called after every round.
Watch = Callable[[Round, State], None]


class World(Protocol):
    """A small random model in the subject's framework, and a draft for it. The same seed gives the same world."""

    seed: int
    vocab: int
    dtype: str
    draft: Any  # a model that often agrees with the target, as this framework takes one

    def plain(self, request: Request) -> list[list[int]]:
        """New tokens of every row, by the framework alone."""
        ...

    def speculated(self, request: Request, speculator: Speculator, watch: Watch | None = None) -> list[list[int]]:
        """The same with `speculator`. A row that was aborted has what it wrote until then."""
        ...

    def scores(self, tokens: Sequence[int], request: Request, prompt_length: int) -> Tensor:
        """The target's scores [V] behind `tokens`, after every processor of `request`, by the framework alone."""
        ...

    def fresh(self, tokens: Sequence[int]) -> list[Tensor]:
        """What `State.cached` should return for a row whose cached tokens are `tokens`: from a fresh prefill."""
        ...

    def fingerprint(self) -> Hashable:
        """Whatever must not change by generating: weights, settings, free slots, hooks."""
        ...


class Subject(Protocol):
    """One adapter. Making it must not import its framework."""

    features: frozenset[Feature]
    capabilities: frozenset[Need]  # what its hosts offer to drafters and policies

    def world(self, seed: int, vocab: int, dtype: str) -> World:
        """A world; may be called often with the same arguments."""
        ...
