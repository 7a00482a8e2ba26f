"""The toy framework's side of a round: rows that come and go over one preallocated cache."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from specplug import Batch, Commit, Need, Targets, TreeBatch, Verdict
from specplug.host import SkippedLayers
from specplug.kv_policies import KVPolicy
from specplug.random import row_seeds
from specplug_conformance.request import Request
from specplug_conformance.toy.model import ToyModel
from specplug_conformance.toy.processing import processed, warped
from specplug_conformance.toy.runner import ToyRunner

SCRATCH = 64  # slots behind a row's committed ones, for tree nodes


class ToyHost:
    """Rows of one request. A row's identity is its index there; slot p of its cache holds position p."""

    capabilities = frozenset({Need.HISTORY, Need.TARGET_RUNNER, Need.MODEL_RUNNER, Need.TARGET_PASS})
    key: Hashable = "toy"
    identity = ("toy", "cpu", "float64")
    weight_bytes = 0.0
    device = torch.device("cpu")

    def __init__(self, model: ToyModel, request: Request) -> None:
        self.model, self.request = model, request
        self.vocab_size, self.kv_bytes = model.vocab, model.vocab * model.past.element_size()
        rows, longest = request.num_rows, max(map(len, request.prompts)) + request.new_tokens
        self.text = torch.zeros((rows, longest + 1), dtype=torch.int64)
        self.ends = torch.tensor([len(prompt) for prompt in request.prompts])
        self.entries = torch.zeros((rows, longest + SCRATCH, model.vocab), dtype=model.past.dtype)
        self.places = torch.zeros((rows, longest + SCRATCH), dtype=torch.int64)
        for row, prompt in enumerate(request.prompts):
            self.text[row, : len(prompt)] = torch.tensor(prompt)
            self._prefill(row)
        seeds = request.seeds or (0,) * rows
        self.seeds = torch.cat([row_seeds(seed, 1, self.device) for seed in seeds])
        self.rows: list[int] = []
        self.runners: list[ToyRunner] = []

    def _prefill(self, row: int) -> None:
        """Everything but the root."""
        count = int(self.ends[row]) - 1
        self.entries[row, :count] = self.model.entries(self.text[row, :count])
        self.places[row, :count] = torch.arange(count)

    def room(self, row: int) -> int:
        """Tokens that `row` may still take."""
        return len(self.request.prompts[row]) + self.request.new_tokens - int(self.ends[row])

    def batch(self) -> Batch:
        rows = torch.tensor(self.rows)
        ends = self.ends[rows]
        return Batch(
            rows=tuple(self.rows),
            roots=self.text[rows, ends - 1],
            lengths=ends - 1,
            seeds=self.seeds[rows],
            sampling=self.request.seeds is not None,
            context=int(ends.max()) - 1,
            room=max(self.room(row) for row in self.rows),
            history=self.text[rows],
            history_ends=ends,
            history_starts=torch.zeros_like(ends),
        )

    def runner(self, model: Any | None, policy: KVPolicy, skipped: SkippedLayers | None = None) -> ToyRunner:
        self.runners.append(ToyRunner(self, model, policy))
        return self.runners[-1]

    def verify(self, batch: Batch, trees: TreeBatch) -> Tensor:
        """Write the nodes behind each row's committed slots, and look at both."""
        rows, nodes = torch.tensor(self.rows), torch.arange(trees.num_nodes)
        slots = batch.lengths[:, None] + nodes
        positions = batch.lengths[:, None] + trees.depths
        self.entries[rows[:, None], slots] = self.model.entries(trees.tokens.clamp(0, self.vocab_size - 1))
        self.places[rows[:, None], slots] = positions
        column = torch.arange(self.entries.shape[1])
        committed = (column < batch.lengths[:, None])[:, None].expand(-1, trees.num_nodes, -1)
        above = (trees.ancestors & ~torch.eye(trees.num_nodes, dtype=torch.bool)).expand(len(rows), -1, -1)
        seen = committed.scatter(2, slots[:, None].expand(-1, trees.num_nodes, -1), above)
        return self.model.logits(trees.tokens, positions, self.entries[rows], self.places[rows], seen)

    def distributions(self, batch: Batch, logits: Tensor, trees: TreeBatch) -> Targets:
        scores = self._by_prefix(logits, trees) if self.request.reads_prefix else self._warped(logits)
        return Targets(probs=scores.softmax(-1).float()) if batch.sampling else Targets(tokens=scores.argmax(-1))

    def _warped(self, logits: Tensor) -> Tensor:
        return warped(logits.double(), self.request) if self.request.seeds is not None else logits

    def _by_prefix(self, logits: Tensor, trees: TreeBatch) -> Tensor:
        """Every node with the text that ends in it."""
        scores = torch.empty(logits.shape, dtype=torch.float64)
        parents = trees.parents.expand(trees.num_rows, -1)
        for place, row in enumerate(self.rows):
            texts: list[list[int]] = []
            for node in range(trees.num_nodes):
                before = (
                    texts[int(parents[place, node])] if node else self.text[row, : int(self.ends[row]) - 1].tolist()
                )
                texts.append([*before, int(trees.tokens[place, node])])
                scores[place, node] = processed(logits[place, node], texts[node], self.request)
        return scores

    def draft_law(self, batch: Batch, logits: Tensor) -> Tensor:
        return self._warped(logits).softmax(-1).float()

    def commit(self, batch: Batch, trees: TreeBatch, verdict: Verdict) -> Commit:
        """Move the accepted path's entries to the row's end, append its tokens, let finished rows go."""
        new, counts, gone = verdict.tokens(trees), [], []
        for place, row in enumerate(self.rows):
            count = min(int(verdict.num_accepted[place]) + 1, self.room(row))
            tokens = new[place, :count].tolist()
            ending = next((i for i, token in enumerate(tokens) if token in self.request.end_tokens), None)
            count = count if ending is None else ending + 1
            base, path = int(batch.lengths[place]), verdict.path[place, :count]
            self.entries[row, base : base + count] = self.entries[row, base + path]
            self.places[row, base : base + count] = self.places[row, base + path]
            self.text[row, base + 1 : base + 1 + count] = new[place, :count]
            self.ends[row] += count
            counts.append(count)
            if ending is not None or not self.room(row):
                gone.append(row)
        self.rows = [row for row in self.rows if row not in gone]
        return Commit(counts, tuple(gone))

    def padded_tokens(self, sizes: Sequence[int]) -> int:
        return len(sizes) * max(sizes)
