"""Another model drafting with a cache of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from specplug import Batch, TreeShape, Verdict
from specplug.drafters import DraftRequest
from specplug.kv_policies import ChoosingPolicy, KVPolicy
from specplug_hf.draft import PreparedDraft
from specplug_hf.identity import name_of
from specplug_hf.prefill import PrefillRows, prefill_rows
from specplug_hf.queries import QueryLog
from specplug_hf.rotation import rotation_of
from specplug_hf.runners.base import Runner
from specplug_hf.runners.block import Block, most_unread, next_block
from specplug_hf.runners.vocabulary import Vocabulary
from specplug_hf.sparse import SparseCopy
from specplug_hf.store import SCRATCH, KVStore
from specplug_hf.support import device_of
from specplug_hf.views import FullView, RingView


class ModelRunner(Runner):
    """Another model. Accepted nodes' KV is kept, so a round reads only the tokens it has not seen: one or two."""

    def __init__(self, host: Any, draft: PreparedDraft, policy: KVPolicy) -> None:
        forward = draft.forward
        super().__init__(forward, policy, forward.storage is not KVStore)
        self.host = host
        self.device = device_of(forward.model)
        self.identity = name_of(forward.model)
        self.vocab_size = host.vocab_size
        self._vocabulary = Vocabulary(draft.translation, host.vocab_size)
        self._levels_read = 0
        # a policy that looks at the cache, or reads it turned, needs all of it beside what the draft reads
        self._whole: KVStore | None = None
        self._sparse: SparseCopy | None = None
        self._queries = QueryLog(forward.model, policy.queries) if isinstance(policy, ChoosingPolicy) else None
        self._reading = False  # committed tokens, whose queries count
        self._recorded: Block  # what `begin` reads in a forward that is recorded

    @property
    def devices(self) -> set[torch.device]:
        """Where its layers are."""
        return {parameter.device for parameter in self.forward.model.parameters()}

    def inputs(self, request: DraftRequest) -> tuple[Tensor, ...] | None:
        """What it has to read first, as a block whose width is the same in every round; see `Runner.inputs`.

        None also for rows that have more to read: a prompt, or what other drafters' rounds have committed.
        """
        if self._selection is None or not self.lengths or min(self.lengths) <= self._selection.size:
            return None
        starts, counts = self._unread()
        width = most_unread(request)
        if max(counts) > width:
            return None
        self.store.reserve(max(self.lengths) + width + request.shape.num_nodes)
        assert request.batch.history is not None
        return next_block(request.batch.history, starts, self.lengths, counts, width).to(self.device).tensors

    @contextmanager
    def recorded(self, *inputs: Tensor) -> Iterator[None]:
        """See `Runner.recorded`; `begin` reads the block that `inputs` are."""
        self._recorded = Block(*inputs)
        with super().recorded(*inputs):
            yield

    def drafted(self) -> tuple[TreeShape, int]:
        """The tree, and how many levels of it `commit` may keep; see `Runner.drafted`."""
        return self._shape, self._levels_read

    def replayed(self, drafted: tuple[TreeShape, int]) -> None:
        """Everything committed has been read, and the levels of a tree; see `Runner.replayed`."""
        self._shape, self._levels_read = drafted
        _, counts = self._unread()
        self.lengths = [length + count for length, count in zip(self.lengths, counts, strict=True)]

    def unread(self, batch: Batch) -> int:
        """What was committed since it last read: the whole texts at first."""
        return sum(self._unread()[1])

    def _unread(self) -> tuple[list[int], list[int]]:
        """Of every row, where its text begins in the history, and how many tokens of it have not been read."""
        starts, ends = self.host.history_bounds()
        read = self.lengths or [0] * len(starts)
        return starts, [end - start - done for start, end, done in zip(starts, ends, read, strict=True)]

    def begin(self, batch: Batch, shape: TreeShape) -> Tensor:
        """Read what was committed since, the root included; see DraftRunner."""
        self._shape, self._levels_read = shape, 0
        if self.recording:
            return self._to_target(self._read_block(self._recorded))
        assert batch.history is not None
        starts, counts = self._unread()
        if not self.lengths:
            self._prefill(batch, starts, [count - 1 for count in counts])
            counts = [1] * batch.num_rows
        if self._sparse is not None:
            self._sparse.sync(self.lengths)
        return self._to_target(self._catch_up(batch.history, starts, counts))

    def _prefill(self, batch: Batch, starts: list[int], counts: list[int]) -> None:
        assert batch.history is not None
        rows = PrefillRows(self._read(batch.history), starts, counts)
        ring = self.view if isinstance(self.view, RingView) else None
        self.lengths = list(counts)
        if ring is None or not self.policy.needs:
            self.store = prefill_rows(self.forward.model, rows, ring, batch.room, self.forward.storage)
            return
        with nullcontext() if self._queries is None else self._queries.reading_prompt():
            self._whole = prefill_rows(self.forward.model, rows, None, batch.room)
        if self._queries is not None:
            self._queries.settle_prompt(counts, self.device)
        rotation = None if ring.reach is None else rotation_of(self.forward.model)
        self._sparse = SparseCopy(self._whole, self.policy, ring, self._queries, rotation)
        self.store = self._sparse.store

    def _mode(self) -> AbstractContextManager[None]:
        return self._queries.verifying() if self._reading and self._queries is not None else nullcontext()

    def _settle(self, counts: list[int], width: int) -> None:
        before = list(self.lengths)
        super()._settle(counts, width)
        self._keep_whole(before, width)
        if self._queries is not None:
            self._queries.commit(torch.arange(width, device=self.device).expand(len(counts), -1), counts)

    def _keep_whole(self, before: list[int], width: int) -> None:
        """What rows have read beyond `before`, at most `width` positions, goes to the whole cache as well."""
        if self._whole is None or self._sparse is None:
            return
        self._whole.reserve(max(self.lengths))
        ends = torch.tensor(self.lengths, device=self.device)[:, None]
        first = torch.tensor(before, device=self.device)[:, None]
        # a row that has read less copies its newest again, onto itself
        positions = torch.minimum(first + torch.arange(width, device=self.device), ends - 1).clamp(min=0)
        self._whole.copy_from(self.store, self.view.slots(positions), positions)
        self._sparse.copied = list(self.lengths)

    def _catch_up(self, history: Tensor, starts: list[int], counts: list[int]) -> Tensor:
        """Read row b's next `counts[b]` tokens, in blocks that fit the scratch."""
        logits = None
        # a block must not be longer than the ring, or two of its tokens would share a slot
        block_limit = min(SCRATCH, self.view.window) if isinstance(self.view, RingView) else SCRATCH
        while True:
            width = min(max(counts), block_limit)
            now = [max(0, min(count, width)) for count in counts]
            block = next_block(history, starts, self.lengths, now, width).to(self.device)
            at_last = self._read_block(block)
            self._settle(now, width)
            fresh = (block.counts > 0)[:, None, None]
            logits = at_last if logits is None else torch.where(fresh.to(at_last.device), at_last, logits)
            counts = [count - n for count, n in zip(counts, now, strict=True)]
            if max(counts) <= 0:
                return logits

    def _read_block(self, block: Block) -> Tensor:
        """Logits [B, 1, V_draft] at each row's last token of `block`."""
        self._places, self._reading = block.places, True
        logits = self._read_chain(self._read(block.tokens), block.positions, block.counts)
        self._reading = False
        return logits

    def extend(self, tokens: Tensor, level: int, ancestors: Tensor | None = None) -> Tensor:
        self._levels_read = level if ancestors is None else 0
        return self._to_target(super().extend(self._read(tokens), level, ancestors))

    def _positions(self, depths: Tensor) -> Tensor:
        return self._places[:, None] + depths

    def _read(self, tokens: Tensor) -> Tensor:
        """The target's tokens as the draft reads them, on its device."""
        return self._vocabulary.read(tokens.to(self.device))

    def _to_target(self, logits: Tensor) -> Tensor:
        """The draft's logits over the target's vocabulary, on the target's device."""
        return self._vocabulary.to_target(logits).to(self.host.device)

    def commit(self, verdict: Verdict, kept: list[int]) -> None:
        """Keep the KV of accepted nodes that were read; `kept[b]` draft tokens of row b were committed."""
        if not self.lengths or not self._levels_read:
            return
        counts = [min(n, self._levels_read) for n in kept]
        width, before = max(counts), list(self.lengths)
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
        if width:
            self._keep_whole(before, width)

    def keep_rows(self, rows: list[int]) -> None:
        """Only the batch rows `rows` stay."""
        if not self.lengths:
            return
        self.lengths = [self.lengths[row] for row in rows]
        if self._whole is None or self._sparse is None:
            self.store.keep_rows(rows)
            return
        self._whole.keep_rows(rows)
        self._sparse.keep_rows(rows)
        if self._queries is not None:
            self._queries.keep_rows(rows)
