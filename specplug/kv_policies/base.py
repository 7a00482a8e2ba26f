"""KV policies: which committed positions a draft reads. They change speed only: the target always verifies with all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from specplug.errors import OptionError


@dataclass(frozen=True, slots=True)
class KVSelection:
    """What a draft reads besides its own tree: `anchors`, chosen once in a while, and a `window` that moves along.

    `anchors` int64, [B or 1, layers or 1, Hkv or 1, K]: committed positions, -1 = none; `window`: the most recent
    committed positions. A position in both is read once. Tokens committed later enter through the window.
    """

    anchors: Tensor
    window: int


class KVPolicy:
    """Base of the KV policies: one small frozen dataclass each."""

    needs: ClassVar[frozenset[str]] = frozenset()

    @property
    def budget(self) -> int | None:
        """Most committed positions the draft reads; None = all of them."""
        return None

    @property
    def key(self) -> str:
        """The method and its budget: what measured acceptance holds for."""
        name = type(self).__name__.lower()
        return name if self.budget is None else f"{name} {self.budget}"

    def select(self, lengths: Tensor) -> KVSelection | None:
        """Choose for rows of `lengths` [B] committed tokens; None = read everything. Called at set-up and at refresh."""
        return None


def check_policy(drafter: str, policy: object) -> None:
    """Raise `OptionError` if `policy` is no policy, as when it is named among the options of a drafter."""
    if not isinstance(policy, KVPolicy):
        raise OptionError(
            f"{drafter}: kv_policy must be a KVPolicy, got {policy!r}; name it in Speculator(kv_policy=...)."
        )


def first_positions(count: int, device: torch.device) -> Tensor:
    """Positions 0..count-1 as anchors that every row, layer and head shares: [1, 1, 1, count]."""
    return torch.arange(count, device=device)[None, None, None]
