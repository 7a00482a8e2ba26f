"""The host: transformers' side of a round. Everything here translates; the method is specplug.round."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from specplug import Batch, Commit, Targets, TreeBatch, Verdict
from specplug.drafters import Drafter
from specplug.host import DraftRunner, SkippedLayers
from specplug.kv_policies import KVPolicy
from specplug_hf.capabilities import capabilities_of
from specplug_hf.draft import prepare_draft
from specplug_hf.extras import Extras
from specplug_hf.graphs.recording import recorder_of
from specplug_hf.graphs.rounds import RecordedRounds, recorded_rounds
from specplug_hf.identity import identity_of, weight_bytes
from specplug_hf.nodes import NodeForward
from specplug_hf.observed import Observed
from specplug_hf.processors import NodeProcessors
from specplug_hf.progress import Progress
from specplug_hf.records import Records
from specplug_hf.runners import ModelRunner, SelfRunner
from specplug_hf.store import KVStore, compacted
from specplug_hf.tokenizer import tokenize
from specplug_hf.views import FullView


@dataclass(slots=True)
class Prompt:
    """What prefill left behind, per row of the call. L columns, B0 rows."""

    store: KVStore  # every row's visible prompt columns
    lengths: list[int]  # visible prompt columns of each row
    starts: list[int]  # first visible column of each row
    next_position: Tensor  # [B0] (or [k, B0]) int64: position id of the first generated token
    shifts: Tensor | None  # [B0, L] int64: column minus slot of every slot, where the mask has holes; else None
    columns: int  # L
    slots: Tensor | None  # [B0, L] int64: slot of every column, -1 masked; None: column c stands in slot c


class HFHost:
    """Rows of one `generate` call. A row's identity is its index in the call; finished rows leave the batch."""

    def __init__(
        self,
        forward: NodeForward,
        prompt: Prompt,
        progress: Progress,
        processors: NodeProcessors,
        records: Records,
        seeds: Tensor | None,
        vocab_size: int,
        kernel: str,
        extras: Extras,
        observed: Observed,
    ) -> None:
        self.forward, self.progress, self.processors, self.records = forward, progress, processors, records
        self.kernel, self.extras, self.queries, self.hidden_states = kernel, extras, observed.queries, observed.hidden
        self.model: PreTrainedModel = forward.model
        self.capabilities = capabilities_of(self.model)
        self.vocab_size = vocab_size
        self.device = progress.ids.device
        self.key: Hashable = (id(self.model), self.model.dtype, str(self.device))
        self.identity = identity_of(self.model)
        self.store = prompt.store
        self.kv_bytes = prompt.store.bytes_per_token
        self.lengths = list(prompt.lengths)
        self.shifts = prompt.shifts
        self.rows = list(range(len(prompt.lengths)))
        self._starts = prompt.starts
        self.prompt_columns = progress.ends[0]  # of the ids; the cache may hold more (a cache passed in, embeddings)
        self.cache_columns = prompt.columns
        self.prompt_lengths = list(prompt.lengths)
        self._prompt = prompt
        self.prompt_offsets = prompt.next_position - torch.tensor(prompt.lengths, device=self.device)
        self._position_offset = self.prompt_offsets
        self.sampling = seeds is not None
        self._seeds = torch.zeros(len(self.rows), dtype=torch.int64, device=self.device) if seeds is None else seeds
        self.runners: list[Any] = []
        self.recorded: RecordedRounds | None = None

    @property
    def weight_bytes(self) -> float:
        """Bytes of the target's weights that a forward reads."""
        return weight_bytes(self.model)

    @property
    def num_layers(self) -> int:
        """Layers of the target."""
        return int(self.model.config.get_text_config(decoder=True).num_hidden_layers)

    # --- what a round asks

    def batch(self) -> Batch:
        """The rows still to be generated."""
        progress, rows = self.progress, self.rows
        whole = len(rows) == progress.ids.shape[0]
        ids = progress.ids if whole else progress.ids[rows]
        ends = torch.tensor([progress.ends[row] for row in rows], device=self.device)
        return Batch(
            rows=tuple(rows),
            roots=ids.gather(1, ends[:, None] - 1).squeeze(1),
            lengths=torch.tensor(self.lengths, device=self.device),
            seeds=self._seeds,
            sampling=self.sampling,
            context=max(self.lengths),
            room=max(progress.room(row) for row in rows),
            history=ids,
            history_ends=ends,
            history_starts=torch.tensor([self._starts[row] for row in rows], device=self.device),
            hidden=None if self.hidden_states is None else self.hidden_states.newest,
        )

    def prompt_batch(self) -> Batch:
        """The round that the prefill stands for: its root is the prompt's last token, its forward has been run."""
        batch = self.batch() if self.prompt_columns else None
        nothing = torch.zeros(len(self.rows), dtype=torch.int64, device=self.device)
        return Batch(
            rows=tuple(self.rows),
            roots=nothing if batch is None else batch.roots,
            lengths=torch.tensor(self.lengths, device=self.device) - 1,
            seeds=self._seeds,
            sampling=self.sampling,
            context=max(self.lengths),
            room=1,
        )

    def history_bounds(self) -> tuple[list[int], list[int]]:
        """First and one-past-last history column of every row in the batch."""
        return [self._starts[row] for row in self.rows], [self.progress.ends[row] for row in self.rows]

    def runner(self, model: Any | None, policy: KVPolicy, skipped: SkippedLayers | None = None) -> DraftRunner:
        """The target (None) or another model, drafting over what `policy` selects, without the sublayers `skipped`."""
        if model is None:
            runner: Any = SelfRunner(self, policy, skipped)
        else:
            runner = ModelRunner(self, prepare_draft(model, self.model, self.vocab_size, self.kernel), policy)
        self.runners.append(runner)
        return runner

    def record(self, drafters: Sequence[Drafter]) -> None:
        """Record rounds from now on, the working copies `drafters` among them, where device, model and call allow it."""
        self.recorded = recorded_rounds(self, recorder_of(self.device))
        if self.recorded is not None:
            self.recorded.install(drafters)

    def verify(self, batch: Batch, trees: TreeBatch) -> Tensor:
        """Forward all nodes over the whole cache: logits [B, N, V]."""
        if self.recorded is not None:
            logits = self.recorded.verify(batch, trees)
            if logits is not None:
                return logits
        with self.queries.verifying() if self.queries is not None else nullcontext():
            output = self.read(batch.lengths, trees)
        columns = self.attention_columns(self.rows, self.lengths, trees) if self.records.attentions else None
        self.records.keep_forward(output, columns)
        return output.logits

    def read(self, lengths: Tensor, trees: TreeBatch, **layout: Any) -> Any:
        """The model's output at all nodes. `lengths` [B] int64: of the rows, on the device; `layout`: see the store's step."""
        step = self.store.step(
            FullView(), self.lengths, trees.ancestors, trees.depths, 0, trees.num_nodes,
            shape=trees.shape, full_width=self.forward.full_width, shifts=self.shifts, **layout,
        )  # fmt: skip
        return self.forward(
            self.store,
            step,
            trees.tokens,
            self.node_positions(lengths, trees.depths),
            **self.extras.for_nodes(self.rows, trees.num_nodes),
            **self.records.forward_flags,
        )

    def node_positions(self, places: Tensor, depths: Tensor | None) -> Tensor:
        """Position ids of nodes `depths` [n] or [B or 1, n] below the tokens at `places` [B] in the cache: [B, n]."""
        base = (self._position_offset + places)[..., None]
        return base if depths is None else base + depths

    def distributions(self, batch: Batch, logits: Tensor, trees: TreeBatch) -> Targets:
        """Every processor of the call, at every node with its own prefix."""
        logits = logits.to(device=self.device, dtype=torch.float32)
        ends = [self.progress.ends[row] for row in self.rows]
        scores = self.processors.scores(logits, self.progress.ids, ends, self.rows, trees)
        self.records.keep_scores(logits, scores)
        if self.sampling:
            return Targets(probs=scores.softmax(-1))
        return Targets(tokens=scores.argmax(-1))

    def draft_law(self, batch: Batch, logits: Tensor) -> Tensor:
        """The warpers that need no prefix, on the draft's logits [B, w, V]: float32 probabilities."""
        return self.processors.warp(logits.float().flatten(0, 1)).view(logits.shape).softmax(-1)

    def commit(self, batch: Batch, trees: TreeBatch, verdict: Verdict) -> Commit:
        """Append the new tokens, keep the accepted path's KV, let finished rows go."""
        accepted, before = verdict.accepted, [self.progress.ends[row] for row in self.rows]
        counts = self.progress.append(self.rows, verdict.tokens(trees), [n + 1 for n in accepted])
        self._keep_path(trees, verdict, counts)
        kept = [min(a, n - 1) for a, n in zip(accepted, counts, strict=True)]
        for runner in self.runners:
            runner.commit(verdict, kept)
        for observer in self._observers:
            observer.commit(verdict.path, counts)
        self.records.add(self.rows, verdict.path, counts)
        self.lengths = [length + n for length, n in zip(self.lengths, counts, strict=True)]
        self.progress.advance(self.records.scores_so_far)
        # a stopping criterion may have taken some back, and of a row that ran ahead what earlier rounds gave
        kept = [max(0, self.progress.ends[row] - end) for row, end in zip(self.rows, before, strict=True)]
        return Commit(num_new=kept, finished=self.drop_finished())

    def padded_tokens(self, sizes: Sequence[int]) -> int:
        """Rows are padded to the widest."""
        return len(sizes) * max(sizes)

    def tokenize(self, text: str) -> Tensor:
        """The model's own tokens of `text`, no special ones added: [n] int64."""
        return tokenize(self.model, text)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Our attention in place for all models of this call, once for the whole of its rounds."""
        with ExitStack() as stack:
            for forward in {id(f): f for f in (self.forward, *(runner.forward for runner in self.runners))}.values():
                stack.enter_context(forward.held())
            if self.hidden_states is not None:
                stack.enter_context(self.hidden_states.watching())
            yield

    # --- how it is done

    @property
    def _observers(self) -> list[Any]:
        """What is kept of the target's forwards for drafters and policies."""
        return [observer for observer in (self.queries, self.hidden_states) if observer is not None]

    def _keep_path(self, trees: TreeBatch, verdict: Verdict, counts: list[int]) -> None:
        """Move the accepted nodes' KV from scratch to the row's end; a chain's stands there already."""
        width = max(counts)
        if width <= 1 or (trees.shape is not None and trees.shape.is_chain):
            return
        lengths = torch.tensor(self.lengths, device=self.device)[:, None]
        path = verdict.path[:, 1:width]
        column = torch.arange(1, path.shape[1] + 1, device=self.device)
        real = column[None] < torch.tensor(counts, device=self.device)[:, None]
        source = lengths + path
        self.store.move(source, torch.where(real, lengths + column, source))

    def drop_finished(self) -> tuple[int, ...]:
        """Rows that need no more rounds leave; others move into their places."""
        active = set(self.progress.active)
        if len(active) == len(self.rows):
            return ()
        keep = compacted([place for place, row in enumerate(self.rows) if row in active])
        gone = tuple(row for row in self.rows if row not in active)
        self.records.retire(self, gone)  # what is returned may need their KV
        if keep:
            self.keep_rows(keep)
        return gone

    def columns_of(self, row: int, slots: int) -> Tensor:
        """Column of each of the first `slots` slots of a row, in the cache as plain generation lays it out: [slots]."""
        prompt = self.prompt_lengths[row]
        generated = self.cache_columns + torch.arange(max(0, slots - prompt))
        if self._prompt.slots is None:
            return torch.cat([torch.arange(min(slots, prompt)), generated])
        visible = (self._prompt.slots[row] >= 0).nonzero().squeeze(1).cpu()
        return torch.cat([visible[:slots], generated])

    def shifts_of(self, row: int) -> Tensor | None:
        """`shifts` of one row of the call: [1, L]."""
        return None if self._prompt.shifts is None else self._prompt.shifts[row : row + 1]

    def attention_columns(self, rows: Sequence[int], lengths: Sequence[int], trees: TreeBatch) -> Any:
        """A function that puts attention weights [heads, slots] of a node into column order: [heads, 1, columns]."""

        def arrange(weights: Tensor, place: int, node: int) -> Tensor:
            length = lengths[place]
            ancestors = trees.ancestors.expand(len(rows), -1, -1)[place, node].nonzero().squeeze(1)
            slots = torch.cat([torch.arange(length, device=ancestors.device), length + ancestors])
            columns = self.columns_of(rows[place], len(slots)).to(weights.device)
            out = weights.new_zeros((weights.shape[0], 1, int(columns[-1]) + 1))
            out[:, 0, columns] = weights[:, slots]
            return out

        return arrange

    def keep_rows(self, keep: list[int]) -> None:
        """Only the batch rows `keep` stay, in this order."""
        index = torch.tensor(keep, device=self.device)
        self.store.keep_rows(keep)
        for follower in (*self.runners, *self._observers):
            follower.keep_rows(keep)
        self.rows = [self.rows[place] for place in keep]
        self.lengths = [self.lengths[place] for place in keep]
        self._seeds = self._seeds[index]
        self._position_offset = self._position_offset[..., index]
        self.shifts = None if self.shifts is None else self.shifts[index]
