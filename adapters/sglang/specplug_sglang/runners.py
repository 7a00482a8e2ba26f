"""Draft runners over SGLang's paged cache: the target itself, and a draft model that shares its slots.

Draft nodes are written to the slots that the verify forward will write again: a tree's node i to the slot of position
`length + i`. So drafting allocates nothing and leaves nothing behind.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.model_executor.forward_batch_info import CaptureHiddenMode, ForwardBatch, ForwardMode
from torch import Tensor

from specplug import Batch, TreeShape
from specplug.kv_policies import KVPolicy
from specplug.tree import shape_tensors
from specplug_sglang.identity import name_of
from specplug_sglang.inputs import INDEX_DTYPES, DraftInput
from specplug_sglang.view import NodeView, committed_columns, draft_view, reading_view

if TYPE_CHECKING:
    from specplug_sglang.host import SGLangHost

BLOCK = 64  # most tokens that a draft model reads at once when it has fallen behind


class SelfRunner:
    """The target over what `policy` selects of its own cache: no second cache, nothing to read first."""

    def __init__(self, host: SGLangHost, runner: Any, policy: KVPolicy) -> None:
        self.host, self.runner, self.policy = host, runner, policy
        self.vocab_size = host.vocab_size
        self._shape: TreeShape
        self._selected: tuple[Tensor, Tensor]
        self.last_view: NodeView | None = None  # what the last forward read, for whoever wants to check it

    def unread(self, batch: Batch) -> int:
        """Nothing: what the target has read is there."""
        return 0

    def begin(self, batch: Batch, shape: TreeShape) -> Tensor:
        """Select, and read the root; see DraftRunner."""
        self._shape = shape
        self._selected = committed_columns(self.policy, batch.lengths, batch.context)
        return self._forward_level(batch.roots[:, None], 0)

    def extend(self, tokens: Tensor, level: int, ancestors: Tensor | None = None) -> Tensor:
        """Forward one level of the tree; see DraftRunner."""
        return self._forward_level(tokens, level, ancestors)

    def _forward_level(self, tokens: Tensor, level: int, ancestors: Tensor | None = None) -> Tensor:
        derived = shape_tensors(self._shape, tokens.device)
        start, stop = self._shape.levels[level]
        view = draft_view(
            self.host.table, self.host.lengths, self._selected, start,
            (derived.ancestors[None, :stop, :stop] if ancestors is None else ancestors)[:, start:stop],
            derived.depths[None, :stop],
        )  # fmt: skip
        return self._forward(tokens, view, view.slots[:, start - stop :])

    def _forward(self, tokens: Tensor, view: NodeView, write: Tensor) -> Tensor:
        self.last_view = view
        return forward_nodes(self.runner, self.host, tokens, view, write)


def forward_nodes(runner: Any, host: SGLangHost, tokens: Tensor, view: NodeView, write: Tensor) -> Tensor:
    """Forward `tokens` [B, q] as decode rows of `runner`'s model over `view`, KV to the slots `write` [B, q]: [B, q, V]."""
    rows, count = tokens.shape
    positions = view.positions.flatten().clamp(max=host.last_position)
    replayed = host.graphs.draft(runner, tokens, view, write, positions, host.indices, host.lengths)
    if replayed is not None:
        return replayed
    # FlashInfer's decode has room for as many rows as SGLang for requests, and every token is one
    most = max(1, runner.max_running_requests // rows) if host.device.type != "cpu" else count
    parts = [
        _forward_part(runner, host, tokens[:, i : i + most], view.part(i, i + most), write[:, i : i + most])
        for i in range(0, count, most)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def _forward_part(runner: Any, host: SGLangHost, tokens: Tensor, view: NodeView, write: Tensor) -> Tensor:
    """Tokens in their order: a later part reads the KV that an earlier one has written, and not the other way."""
    rows, count = tokens.shape
    batch = ForwardBatch(
        forward_mode=ForwardMode.DECODE,
        batch_size=rows,  # SGLang's buffers hold so many requests, and more tokens than we ever forward
        input_ids=tokens.flatten(),
        req_pool_indices=host.indices,
        seq_lens=host.lengths,
        out_cache_loc=write.flatten(),
        seq_lens_sum=0,
        positions=view.positions.flatten().clamp(max=host.last_position),
        spec_algorithm=host.algorithm,
        spec_info=DraftInput(view, INDEX_DTYPES.get(type(runner.attn_backend).__name__)),
        capture_hidden_mode=CaptureHiddenMode.NULL,
    )
    return runner.forward(batch).logits_output.next_token_logits.view(rows, count, -1)


class ModelRunner(SelfRunner):
    """A draft model whose own pool is indexed by the target's slots. Accepted nodes that it has read keep their KV.

    What it has read of each request is known on the host: SGLang tells the lengths before every round.
    """

    def __init__(self, host: SGLangHost, runner: Any, policy: KVPolicy) -> None:
        super().__init__(host, runner, policy)
        self.identity = name_of(runner)
        # tokens of each row that are in the draft's cache; until `settle`, those of its last tree included
        self._read: dict[Any, int] = {}

    def unread(self, batch: Batch) -> int:
        """What was committed since it last read; prompts too, where they were not read with the target's."""
        return sum(n - self.known(row, n) for row, n in zip(batch.rows, self.host.lengths_cpu, strict=True))

    def read_to(self, row: Any) -> int:
        """Up to which place of `row` the draft has read, in this round's tree included."""
        return self._read.get(row, 0)

    def known(self, row: Any, length: int) -> int:
        """How many of the `length` committed tokens of `row` are in the draft's cache."""
        return min(length, self._read.get(row, 0))

    def prefilled(self, lengths: dict[Any, int]) -> None:
        """Of each of these rows' prompts, so much is in the draft's cache."""
        self._read.update(lengths)

    def settle(self, rows: list[Any], lengths: list[int]) -> None:
        """A round has ended: what was read beyond a row's length belongs to rejected nodes, and does not count later."""
        for row, length in zip(rows, lengths, strict=True):
            self._read[row] = self.known(row, length)

    def forget(self, rows: list[Any]) -> None:
        """These rows have left."""
        for row in rows:
            self._read.pop(row, None)

    def begin(self, batch: Batch, shape: TreeShape) -> Tensor:
        """Read what was committed since, the root included; see DraftRunner."""
        self._shape = shape
        lengths = self.host.lengths_cpu
        behind = max(n - self.known(row, n) for row, n in zip(batch.rows, lengths, strict=True))
        while behind >= BLOCK:
            self._read_back(batch, behind, BLOCK)
            behind -= BLOCK
        logits = self._read_back(batch, behind, behind + 1)
        # of the coming tree, everything but its last level will have been read
        for row, length in zip(batch.rows, lengths, strict=True):
            self._read[row] = length + max(1, shape.depth)
        self._selected = committed_columns(self.policy, batch.lengths, batch.context)
        return logits[:, -1:]

    def extend(self, tokens: Tensor, level: int, ancestors: Tensor | None = None) -> Tensor:
        """Forward one level of the tree; see DraftRunner."""
        if ancestors is not None:  # what is verified will stand in another order: of this only the root counts as read
            for row, length in zip(self.host.schedule.reqs, self.host.lengths_cpu, strict=True):
                self._read[row.rid] = length + 1
        return super().extend(tokens, level, ancestors)

    def _read_back(self, batch: Batch, behind: int, count: int) -> Tensor:
        """Read `count` tokens from `behind` before the root on. Of those that a row has read, its cache keeps the old KV."""
        view = reading_view(self.host.table, self.policy, batch.lengths, batch.context, behind, count)
        known = [self.known(row, length) for row, length in zip(batch.rows, self.host.lengths_cpu, strict=True)]
        places = batch.lengths[:, None] - behind + torch.arange(count, device=batch.lengths.device)
        fresh = places >= torch.tensor(known, device=batch.lengths.device)[:, None]
        tokens = self.host.text.ids[self.host.indices[:, None], view.positions]
        slots = view.slots[:, -count:].where(fresh, 0)  # slot 0 is for what nobody needs
        self.host.draft_cache.read(slots)
        return self._forward(tokens, view, slots)
