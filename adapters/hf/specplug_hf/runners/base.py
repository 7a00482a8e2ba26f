"""What all draft runners have in common: the root's forward, then the tree level by level."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from specplug import TreeShape
from specplug.kv_policies import KVPolicy
from specplug.tree import shape_levels, shape_tensors
from specplug_hf.nodes import NodeForward
from specplug_hf.step import Step
from specplug_hf.store import KVStore
from specplug_hf.views import FullView, RingView, view_of


@lru_cache(maxsize=256)
def _chain(width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ancestors [1, n, n] and depths [1, n] of a chain of `width` nodes."""
    depths = torch.arange(width, device=device)[None]
    return torch.ones((1, width, width), dtype=torch.bool, device=device).tril(), depths


@dataclass(frozen=True, slots=True)
class _BelowRoot:
    """A shape without its root, which has been read by the time its levels are: scratch holds the nodes from 1 on."""

    ancestors: Tensor  # [1, n, n] bool
    depths: Tensor  # [1, n]: 0 for the root's children
    levels: tuple[tuple[int, int], ...]


@lru_cache(maxsize=256)
def _below_root(shape: TreeShape, device: torch.device) -> _BelowRoot:
    derived = shape_tensors(shape, device)
    levels = tuple((start - 1, stop - 1) for start, stop in shape_levels(shape)[1:])
    return _BelowRoot(derived.ancestors[None, 1:, 1:], derived.depths[None, 1:] - 1, levels)


class Runner:
    """The root's forward, then level by level. `lengths`: tokens of each row that this runner has read."""

    def __init__(self, forward: NodeForward, policy: KVPolicy, paged: bool) -> None:
        self.forward, self.policy, self.view = forward, policy, view_of(policy)
        by_pages = paged and not policy.needs  # what is chosen a layer and head, or turned, has to be laid out
        self._selection = self.view if by_pages and isinstance(self.view, RingView) else None
        if self._selection is not None:  # a page table selects; nothing is laid out anew
            self.view = FullView()
        self.store: KVStore
        self.lengths: list[int] = []
        self._shape: TreeShape

    def _run_chain(self, tokens: Tensor, counts: list[int], positions: Tensor) -> Tensor:
        """Read `tokens` [B, n], of which row b's first `counts[b]` are real; logits at each row's last real token."""
        width = tokens.shape[1]
        ancestors, depths = _chain(width, tokens.device)
        step = self._step(ancestors, depths, 0, width)
        logits = self._forward(step, tokens, positions, width)
        self._settle(counts, width)
        if width > 1:
            # a row that has read all its tokens in an earlier block has none here: anything may stand for it
            last = torch.tensor(counts, device=logits.device)[:, None, None].sub(1).clamp(min=0)
            return logits.gather(1, last.expand(-1, 1, logits.shape[-1]))
        return logits

    def _forward(self, step: Step, tokens: Tensor, positions: Tensor, width: int) -> Tensor:
        """Logits [B, width, V] of one forward over the draft's store."""
        with self._mode():
            return self.forward(self.store, step, tokens, positions, **self._extras(width)).logits

    def _mode(self) -> AbstractContextManager[None]:
        """What a forward of this draft differs by from the model's own."""
        return nullcontext()

    def _settle(self, counts: list[int], width: int) -> None:
        """Nodes just read become committed positions of this runner."""
        if isinstance(self.view, RingView):
            device = self.store.keys[0].device
            column = torch.arange(width, device=device)
            lengths = torch.tensor(self.lengths, device=device)
            real = column[None] < torch.tensor(counts, device=device)[:, None]
            source = self.view.size + column.expand(len(counts), -1)
            target = self.view.slots(lengths[:, None] + column)
            self.store.move(source, torch.where(real, target, source))
        self.lengths = [length + count for length, count in zip(self.lengths, counts, strict=True)]

    def _step(self, ancestors: Tensor, depths: Tensor, start: int, stop: int, shape: TreeShape | None = None) -> Step:
        return self.store.step(
            self.view, self.lengths, ancestors, depths, start, stop,
            shape=shape, skip_root=shape is not None, full_width=self.forward.full_width, shifts=self._shifts(),
            **self._layout,
        )  # fmt: skip

    def _shifts(self) -> Tensor | None:
        return None

    @property
    def _layout(self) -> dict[str, Any]:
        """What a store's step takes besides."""
        return {} if self._selection is None else {"selection": self._selection}

    def _extras(self, count: int) -> dict[str, Any]:
        """Further inputs of `count` nodes a row."""
        return {}

    def _positions(self, depths: Tensor) -> Tensor:
        """Position ids of nodes at `depths` [n] below the root, which has been read by now."""
        raise NotImplementedError

    def extend(self, tokens: Tensor, level: int, ancestors: Tensor | None = None) -> Tensor:
        """Forward one level of the tree; see DraftRunner."""
        below = _below_root(self._shape, tokens.device)
        start, stop = below.levels[level - 1]
        if ancestors is None:
            step = self._step(below.ancestors, below.depths, start, stop, self._shape)
        else:
            step = self._step(ancestors[:, 1:, 1:].to(tokens.device), below.depths, start, stop)
        positions = self._positions(below.depths[0, start:stop])
        return self._forward(step, tokens, positions, stop - start)
