"""What an adapter supplies: the host protocol, and the values that cross it.

An adapter only translates between its framework and these; the method itself (round.py) is the same everywhere.
Rows have identities: they join, leave, pause and come back, and whatever a drafter or controller remembers hangs on
the identity, never on the position in the batch.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from specplug.kv_policies.base import KVPolicy
from specplug.needs import Need
from specplug.tree import TreeBatch, TreeShape
from specplug.verify import Targets, Verdict


@dataclass(frozen=True, slots=True)
class Batch:
    """The rows of one round. `rows[b]` is the identity of row b; B = len(rows)."""

    rows: tuple[Hashable, ...]
    roots: Tensor  # [B] int64: newest committed token, its KV not in the cache
    lengths: Tensor  # [B] int64: tokens in the cache, so also the root's place in it
    seeds: Tensor  # [B] int64: seed of the row's draws
    sampling: bool  # False: every row is greedy
    context: int  # most tokens in the cache of any row, known without asking the device
    room: int  # most tokens that any row may still take (>= 1), known without asking the device
    history: Tensor | None = None  # [B, T] int64: committed tokens, the root last, if the host has Need.HISTORY
    history_ends: Tensor | None = None  # [B] int64: row b's tokens stand in [history_starts[b], history_ends[b])
    history_starts: Tensor | None = None  # [B] int64
    # [B, D], of the model's dtype, if somebody has Need.HIDDEN_STATES: what came out of the target's last norm at the token
    # before the root, from which the root was chosen
    hidden: Tensor | None = None

    @property
    def num_rows(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Commit:
    """What was really kept: the host may cut what was accepted (stop, grammar, length)."""

    num_new: Sequence[int] | Tensor  # [B]: tokens committed, bonus included
    finished: tuple[Hashable, ...] = ()  # rows that left the batch

    @cached_property
    def counts(self) -> list[int]:
        """`num_new` as integers; waits for the device, once."""
        return [int(n) for n in (self.num_new.tolist() if isinstance(self.num_new, Tensor) else self.num_new)]


@dataclass(frozen=True, slots=True)
class SkippedLayers:
    """Sublayers that a draft leaves out, by the index of their layer: what comes in goes out (SWIFT, arXiv 2410.06916)."""

    attention: frozenset[int] = frozenset()
    mlp: frozenset[int] = frozenset()


class DraftRunner(Protocol):
    """A model that drafts over a KV policy's view of the committed tokens. One round: `begin`, then `extend` by level.

    Its cache for draft nodes is scratch: nothing of an unfinished round is seen by the next.
    """

    vocab_size: int

    def unread(self, batch: Batch) -> int:
        """Committed tokens, over all rows, that `begin` would have to read first; known without asking the device."""
        ...

    def begin(self, batch: Batch, shape: TreeShape) -> Tensor:
        """Read what was committed since the last round, the root included; logits at the root, [B, 1, V]."""
        ...

    def extend(self, tokens: Tensor, level: int, ancestors: Tensor | None = None) -> Tensor:
        """Forward the nodes of `level` (1, 2, ...), `tokens` [B, w]; logits at them, [B, w, V].

        `ancestors` [B, n, n] bool: of the n nodes forwarded so far, these and the root included, where rows differ and
        the tree to be verified will be another one; what was drafted is not kept then. None: as in the shape.
        """
        ...


class Host(Protocol):
    """The framework's side of a round."""

    vocab_size: int
    device: torch.device
    capabilities: frozenset[Need]
    key: Hashable  # what measured times hold for: model, device, dtype
    identity: tuple[
        str, str, str
    ]  # model, device, dtype: names that survive the process, for a profile (cost/identity.py)
    weight_bytes: float  # bytes of the target's weights that a forward reads; 0: not known
    kv_bytes: int  # bytes of one token's keys and values over all layers, for the estimate of what was read

    def batch(self) -> Batch:
        """The rows to speculate for now."""
        ...

    def runner(self, model: Any | None, policy: KVPolicy, skipped: SkippedLayers | None = None) -> DraftRunner:
        """A runner for `model` (None: the target itself) that reads what `policy` selects. Called at set-up.

        `skipped`: sublayers that it leaves out, of a host with Need.LAYER_SKIPPING.
        """
        ...

    def verify(self, batch: Batch, trees: TreeBatch) -> Tensor:
        """Forward every node through the target with its whole cache: logits [B, N, V] of the model's dtype."""
        ...

    def distributions(self, batch: Batch, logits: Tensor, trees: TreeBatch) -> Targets:
        """Apply the framework's processors to `logits` with each node's own prefix."""
        ...

    def draft_law(self, batch: Batch, logits: Tensor) -> Tensor:
        """The law a draft token is drawn from, after the warpers that need no prefix: [B, w, V] -> float32 probabilities."""
        ...

    def commit(self, batch: Batch, trees: TreeBatch, verdict: Verdict) -> Commit:
        """Keep the accepted path's KV and append the new tokens to each row."""
        ...

    def padded_tokens(self, sizes: Sequence[int]) -> int:
        """Tokens a verify of rows with `sizes` nodes really computes (padding included); it enters the cost."""
        ...
