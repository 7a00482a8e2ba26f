"""Draft runners: the target over a sparse view of its own cache, and another model with a cache of its own."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from specplug import Batch, TreeShape, Verdict
from specplug.kv_policies import KVPolicy
from specplug.tree import shape_levels, shape_tensors
from specplug_hf.identity import name_of
from specplug_hf.nodes import NodeForward
from specplug_hf.paged.store import PagedStore
from specplug_hf.prefill import PrefillRows, prefill_rows
from specplug_hf.step import Step
from specplug_hf.store import KVStore
from specplug_hf.support import device_of
from specplug_hf.views import FullView, RingView, View, view_of

SLACK = 64  # scratch slots that a ring starts with


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


class _Runner:
    """What both have in common: the root's forward, then level by level. `lengths`: tokens this runner has read."""

    def __init__(self, forward: NodeForward, view: View, paged: bool) -> None:
        self.forward, self.view = forward, view
        self._selection = view if paged and isinstance(view, RingView) else None
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
        logits = self.forward(self.store, step, tokens, positions, **self._extras(width)).logits
        self._settle(counts, width)
        if width > 1:
            # a row that has read all its tokens in an earlier block has none here: anything may stand for it
            last = torch.tensor(counts, device=logits.device)[:, None, None].sub(1).clamp(min=0)
            return logits.gather(1, last.expand(-1, 1, logits.shape[-1]))
        return logits

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
        return self.forward(self.store, step, tokens, positions, **self._extras(stop - start)).logits


class SelfRunner(_Runner):
    """The target itself. With a ring, committed KV is copied from the target's store as it is committed, no more."""

    def __init__(self, host: Any, policy: KVPolicy) -> None:
        super().__init__(host.forward, view_of(policy), isinstance(host.store, PagedStore))
        self.host = host
        self.vocab_size = host.vocab_size
        self.recording = False  # what runs is recorded, and will be replayed for longer texts (graphs/)
        self._places: Tensor  # tokens of each row in the target's cache [B], on the device
        self._copied: list[int] = []  # positions [0, copied) of each row are in the ring, as far as it holds them

    def unread(self, batch: Batch) -> int:
        """Nothing: what the target has read is there."""
        return 0

    def begin(self, batch: Batch, shape: TreeShape) -> Tensor:
        """Take over what was committed, then read the root; see DraftRunner."""
        self._shape, self._places = shape, batch.lengths
        self.lengths = list(self.host.lengths)
        if isinstance(self.view, RingView):
            self._sync(self.view)
        else:
            self.store = self.host.store
        return self._run_chain(
            batch.roots[:, None], [1] * batch.num_rows, self.host.node_positions(batch.lengths, None)
        )

    def _sync(self, ring: RingView) -> None:
        if not self._copied:
            self.store = self.host.store.like(ring.size + SLACK)
            self._copied = [0] * len(self.lengths)
        sinks = min(ring.sink, max(self.lengths))
        if sinks and min(self._copied) < ring.sink:
            self._copy(torch.arange(sinks)[None].expand(len(self.lengths), -1), ring)
        first = [max(ring.oldest(n), done) for n, done in zip(self.lengths, self._copied, strict=True)]
        width = max(n - start for n, start in zip(self.lengths, first, strict=True))
        if width > 0:
            # rows that need fewer copy some positions again, each onto itself
            ends = torch.tensor(self.lengths)[:, None]
            self._copy((ends - width + torch.arange(width)).clamp(min=0), ring)
        self._copied = list(self.lengths)

    def _copy(self, positions: Tensor, ring: RingView) -> None:
        positions = positions.to(self.host.device)
        self.store.copy_from(self.host.store, positions, ring.slots(positions))

    def _positions(self, depths: Tensor) -> Tensor:
        return self.host.node_positions(self._places + 1, depths)

    def _shifts(self) -> Tensor | None:
        return self.host.shifts

    @property
    def _layout(self) -> dict[str, Any]:
        if self._selection is None:
            return {}
        root_read = self.lengths[0] > self.host.lengths[0]
        places = self._places + 1 if root_read else self._places
        return {"selection": self._selection, "places": places, "replayed": self.recording}

    def _extras(self, count: int) -> dict[str, Any]:
        return self.host.extras.for_nodes(self.host.rows, count)

    def commit(self, verdict: Verdict, kept: list[int]) -> None:
        """The target's own KV of what was accepted is copied at the next `begin`."""

    def keep_rows(self, rows: list[int]) -> None:
        """Only the batch rows `rows` stay."""
        if isinstance(self.view, RingView) and self._copied:
            self.store.keep_rows(rows)
            self._copied = [self._copied[row] for row in rows]


class ModelRunner(_Runner):
    """Another model. Accepted nodes' KV is kept, so a round reads only the tokens it has not seen: one or two."""

    def __init__(self, host: Any, forward: NodeForward, policy: KVPolicy) -> None:
        super().__init__(forward, view_of(policy), forward.storage is not KVStore)
        self.host = host
        self.device = device_of(forward.model)
        self.identity = name_of(forward.model)
        self.vocab_size = host.vocab_size
        self._levels_read = 0

    def unread(self, batch: Batch) -> int:
        """What was committed since it last read: the whole texts at first."""
        starts, ends = self.host.history_bounds()
        return sum(ends) - sum(starts) - sum(self.lengths)

    def begin(self, batch: Batch, shape: TreeShape) -> Tensor:
        """Read what was committed since, the root included; see DraftRunner."""
        self._shape = shape
        assert batch.history is not None and batch.history_starts is not None
        starts, ends = self.host.history_bounds()
        totals = [end - start for start, end in zip(starts, ends, strict=True)]
        if not self.lengths:
            self._prefill(batch, starts, [total - 1 for total in totals])
        counts = [total - length for total, length in zip(totals, self.lengths, strict=True)]
        logits = self._catch_up(batch.history, starts, counts)
        self._levels_read = 0
        return self._to_target(logits)

    def _prefill(self, batch: Batch, starts: list[int], counts: list[int]) -> None:
        assert batch.history is not None
        rows = PrefillRows(batch.history.to(self.device), starts, counts)
        ring = self.view if isinstance(self.view, RingView) else None
        self.store = prefill_rows(self.forward.model, rows, ring, SLACK, self.forward.storage)
        self.lengths = list(counts)

    def _catch_up(self, history: Tensor, starts: list[int], counts: list[int]) -> Tensor:
        """Read row b's next `counts[b]` tokens, in blocks that fit the scratch."""
        logits = None
        # a block must not be longer than the ring, or two of its tokens would share a slot
        block_limit = min(SLACK, self.view.window) if isinstance(self.view, RingView) else SLACK
        while True:
            width = min(max(counts), block_limit)
            block = [min(count, width) for count in counts]
            begin = torch.tensor([s + n for s, n in zip(starts, self.lengths, strict=True)], device=history.device)
            columns = begin[:, None] + torch.arange(width, device=history.device)
            tokens = history.gather(1, columns.clamp(max=history.shape[1] - 1)).to(self.device)
            positions = torch.tensor(self.lengths, device=self.device)[:, None] + torch.arange(
                width, device=self.device
            )
            now = self._run_chain(tokens, [max(n, 0) for n in block], positions)
            fresh = torch.tensor([n > 0 for n in block], device=now.device)[:, None, None]
            logits = now if logits is None else torch.where(fresh, now, logits)
            counts = [count - n for count, n in zip(counts, block, strict=True)]
            if max(counts) <= 0:
                return logits

    def extend(self, tokens: Tensor, level: int, ancestors: Tensor | None = None) -> Tensor:
        self._levels_read = level if ancestors is None else 0
        return self._to_target(super().extend(tokens.to(self.device), level, ancestors))

    def _positions(self, depths: Tensor) -> Tensor:
        return torch.tensor(self.lengths, device=self.device)[:, None] + depths

    def _to_target(self, logits: Tensor) -> Tensor:
        """The draft's logits over the target's vocabulary, on the target's device; padding ids cannot be drawn."""
        extra = self.vocab_size - logits.shape[-1]
        if extra > 0:
            logits = torch.nn.functional.pad(logits, (0, extra), value=torch.finfo(logits.dtype).min)
        elif extra < 0:
            logits = logits[..., : self.vocab_size]
        return logits.to(self.host.device)

    def commit(self, verdict: Verdict, kept: list[int]) -> None:
        """Keep the KV of accepted nodes that were read; `kept[b]` draft tokens of row b were committed."""
        if not self.lengths or not self._levels_read:
            return
        counts = [min(n, self._levels_read) for n in kept]
        width = max(counts)
        if width and not (self._shape.is_chain and isinstance(self.view, FullView)):
            device = self.store.keys[0].device
            path = verdict.path[:, 1 : width + 1].to(device)
            lengths = torch.tensor(self.lengths, device=device)[:, None]
            bases = torch.tensor(self.view.bases(self.lengths), device=device)[:, None]
            column = torch.arange(width, device=device)
            source = bases + path - 1
            target = self.view.slots(lengths + column)
            real = column[None] < torch.tensor(counts, device=device)[:, None]
            self.store.move(source, torch.where(real, target, source))
        self.lengths = [length + count for length, count in zip(self.lengths, counts, strict=True)]
        self._levels_read = 0

    def keep_rows(self, rows: list[int]) -> None:
        """Only the batch rows `rows` stay."""
        if self.lengths:
            self.store.keep_rows(rows)
            self.lengths = [self.lengths[row] for row in rows]
