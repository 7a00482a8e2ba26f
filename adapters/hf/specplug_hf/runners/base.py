"""What all draft runners have in common: the root's forward, then the tree level by level."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from specplug import TreeShape
from specplug.drafters import DraftRequest
from specplug.kv_policies import KVPolicy
from specplug.tree import shape_tensors
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
    levels = tuple((start - 1, stop - 1) for start, stop in shape.levels[1:])
    return _BelowRoot(derived.ancestors[None, 1:, 1:], derived.depths[None, 1:] - 1, levels)


class Runner:
    """The root's forward, then level by level. `lengths`: tokens of each row that this runner has read.

    Over a window of a paged store a whole draft has the same shapes in every round, and can be recorded (graphs/): what the
    device computes then comes from tensors alone, and what Python knows of the texts is brought up to date beside it.
    """

    def __init__(self, forward: NodeForward, policy: KVPolicy, paged: bool) -> None:
        self.forward, self.policy, self.view = forward, policy, view_of(policy)
        by_pages = paged and not policy.needs  # what is chosen a layer and head, or turned, has to be laid out
        self._selection = self.view if by_pages and isinstance(self.view, RingView) else None
        if self._selection is not None:  # a page table selects; nothing is laid out anew
            self.view = FullView()
        self.store: KVStore
        self.lengths: list[int] = []
        self.recording = False  # what runs is recorded, and will be replayed for longer texts
        self._places: Tensor  # `lengths` on the device, [B] int64
        self._shape: TreeShape

    # --- what is asked by those who record (graphs/)

    @property
    def selects_pages(self) -> bool:
        """Whether it reads a window of its store through a page table, of a size that stays the same."""
        return self._selection is not None

    @property
    def devices(self) -> set[torch.device]:
        """Where its layers are."""
        raise NotImplementedError

    def inputs(self, request: DraftRequest) -> tuple[Tensor, ...] | None:
        """What a recorded draft of `request` reads on the device beside the batch; None: this round's runs eagerly.

        Its store has room for it from then on.
        """
        raise NotImplementedError

    @contextmanager
    def recorded(self, *inputs: Tensor) -> Iterator[None]:
        """What is drafted within is recorded, for what `inputs` will hold at each replay."""
        self.recording = True
        try:
            yield
        finally:
            self.recording = False

    def drafted(self) -> Any:
        """What the last draft left on the host, that is the same after any replay of it."""

    def replayed(self, drafted: Any) -> None:
        """A recording has drafted: bring the host up to date, as `begin` and `extend` would have; `drafted`: see there."""

    # --- how it is done

    def _read_chain(self, tokens: Tensor, positions: Tensor, counts: Tensor) -> Tensor:
        """Read `tokens` [B, n], of which row b's first `counts[b]` [B] int64 are real; logits [B, 1, V] at its last real one."""
        width = tokens.shape[1]
        ancestors, depths = _chain(width, tokens.device)
        logits = self._forward(self._step(ancestors, depths, 0, width), tokens, positions, width)
        self._places = self._places + counts
        if width == 1:
            return logits
        # a row that has read all its tokens in an earlier block has none here: anything may stand for it
        last = counts.to(logits.device)[:, None, None].sub(1).clamp(min=0)
        return logits.gather(1, last.expand(-1, 1, logits.shape[-1]))

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
        if self._selection is None:
            return {}
        return {"selection": self._selection, "places": self._places, "replayed": self.recording}

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
