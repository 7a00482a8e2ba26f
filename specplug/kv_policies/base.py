"""KV policies: which committed positions a draft reads. They change speed only: the target always verifies with all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from specplug.errors import OptionError
from specplug.needs import Need


@dataclass(frozen=True, slots=True)
class KVSelection:
    """What a draft reads besides its own tree: `anchors`, chosen once in a while, and a `window` that moves along.

    `anchors` int64, [B or 1, layers or 1, Hkv or 1, K]: committed positions, -1 = none; `window`: the most recent
    committed positions. A position in both is read once. Tokens committed later enter through the window.
    `reach`: an anchor is read as if it stood at most so many positions before the root (its key is rotated anew); None: where
    it stands.
    """

    anchors: Tensor
    window: int
    reach: int | None = None


class KVPolicy:
    """Base of the KV policies: one small frozen dataclass each."""

    needs: ClassVar[frozenset[Need]] = frozenset()

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
        """What is read of rows of `lengths` [B] committed tokens, whatever they are; None = everything. Called at set-up."""
        return None


@dataclass(frozen=True, slots=True)
class LayerContext:
    """What a policy sees of one layer when it chooses. T positions, of which row b has `lengths[b]`; the rest is arbitrary.

    `keys`, `values` [B, Hkv, T, D]: as attended, keys rotated. `queries` [B, Hq, Q, D]: the last committed ones, rotated, the
    newest last; of row b the last `query_counts[b]` are real, those of its last positions. A policy may choose among the
    first `choices[b]` positions: the others are in the window.
    """

    layer: int
    keys: Tensor
    values: Tensor
    queries: Tensor
    query_counts: Tensor  # [B] int64
    lengths: Tensor  # [B] int64
    choices: Tensor  # [B] int64
    scale: float  # of the dot products


class Chooser(Protocol):
    """A policy at work for the rows of one draft: it may remember what it has computed of them."""

    def choose(self, context: LayerContext) -> Tensor:
        """Positions to read, [B, Hkv or 1, K] int64 below `context.choices`, -1 = none, in any order; none twice."""
        ...

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Only the batch rows `rows` stay, in this order."""
        ...


class ChoosingPolicy(KVPolicy):
    """A policy that looks at the cache: `anchors` positions a layer and KV head, chosen anew every `refresh` rounds.

    Until it has chosen, and while the text is no longer than the budget, the first positions stand for them.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({Need.QUERIES})
    queries: ClassVar[int] = 1  # how many of the last committed queries it looks at
    window: int  # most recent positions, always read
    refresh: int  # rounds from one choice to the next; 0: once, behind the prompt

    @property
    def anchors(self) -> int:
        """Positions chosen a layer and KV head."""
        assert self.budget is not None
        return self.budget - self.window

    @property
    def key(self) -> str:
        """With the refresh: an old choice is accepted less often."""
        return f"{super().key}, chosen {f'every {self.refresh}' if self.refresh else 'once'}"

    def select(self, lengths: Tensor) -> KVSelection:
        return KVSelection(first_positions(self.anchors, lengths.device), self.window)

    def open(self) -> Chooser:
        """The policy at work for one draft."""
        raise NotImplementedError


def check_budget(policy: str, budget: int, window: int, refresh: int) -> None:
    """Raise `OptionError` unless a window fits into the budget and leaves something to choose."""
    if window < 1:
        raise OptionError(f"{policy}: window={window} must be at least 1, or the draft forgets the newest token.")
    if budget <= window:
        raise OptionError(f"{policy}: budget={budget} must exceed window={window}; the rest is what is chosen.")
    if refresh < 0:
        raise OptionError(f"{policy}: refresh={refresh} must not be negative; use refresh=0 to choose once.")


def check_policy(drafter: str, policy: object) -> None:
    """Raise `OptionError` if `policy` is no policy, as when it is named among the options of a drafter."""
    if not isinstance(policy, KVPolicy):
        raise OptionError(
            f"{drafter}: kv_policy must be a KVPolicy, got {policy!r}; name it in Speculator(kv_policy=...)."
        )


def first_positions(count: int, device: torch.device) -> Tensor:
    """Positions 0..count-1 as anchors that every row, layer and head shares: [1, 1, 1, count]."""
    return torch.arange(count, device=device)[None, None, None]


def best_positions(scores: Tensor, choices: Tensor, count: int) -> Tensor:
    """The `count` positions of highest `scores` [B, H, T] among each row's first `choices` [B]: [B, H, count], -1 = none."""
    position = torch.arange(scores.shape[2], device=scores.device)
    allowed = position < choices[:, None, None]
    ranked = scores.float().masked_fill(~allowed, -torch.inf).topk(min(count, scores.shape[2]), dim=2)
    found = ranked.indices.where(allowed.expand_as(scores).gather(2, ranked.indices), -1)
    missing = count - found.shape[2]
    return torch.nn.functional.pad(found, (0, missing), value=-1) if missing else found
