"""The host: SGLang's side of a round. Everything here translates; the method is specplug.round."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from sglang.srt.managers.schedule_batch import ScheduleBatch
from sglang.srt.model_executor.forward_batch_info import CaptureHiddenMode, ForwardMode
from torch import Tensor

from specplug import Batch, Commit, Need, Targets, TreeBatch, UnsupportedError, Verdict
from specplug.host import DraftRunner, SkippedLayers
from specplug.kv_policies import KVPolicy
from specplug_sglang import grammar, laws, penalties
from specplug_sglang.checks import check_layout, check_pool, check_window
from specplug_sglang.draft_cache import DraftCache
from specplug_sglang.graphs import Graphs
from specplug_sglang.hidden import HiddenStates
from specplug_sglang.identity import identity_of, weight_bytes
from specplug_sglang.inputs import RoundRelay, TreeInput
from specplug_sglang.requests import Requests, written
from specplug_sglang.runners import ModelRunner, SelfRunner
from specplug_sglang.text import TextStore
from specplug_sglang.view import SlotTable, flat_mask, verify_view


@dataclass(slots=True)
class Outcome:
    """What one round leaves for the worker to hand back: the target's output and the verdict."""

    logits_output: Any
    graph: bool
    trees: TreeBatch
    verdict: Verdict


class SGLangHost:
    """The rows of one scheduler batch, a round at a time. A row's identity is its request's id."""

    def __init__(self, target: Any, draft: Any | None, requests: Requests, required: frozenset[Need]) -> None:
        """`target`, `draft`: SGLang's workers; `required`: what the drafters that may be chosen need, together."""
        runner = target.model_runner
        self.target, self.draft, self.requests = target, draft, requests
        self.algorithm = runner.spec_algorithm
        self.vocab_size: int = runner.model_config.vocab_size
        self.last_position: int = runner.model_config.context_len - 1  # nodes beyond it cannot be accepted
        self.device = torch.device(runner.device)
        self.key: Hashable = (runner.model_config.model_path, str(runner.dtype), str(self.device))
        self.identity = identity_of(runner)
        self.pool, self.allocator = target.get_memory_pool()
        for worker in (target, draft) if draft is not None else (target,):
            check_pool(worker.model_runner.token_to_kv_pool)
            check_window(worker.model_runner.sliding_window_size, self.device.type)
        self.kv_bytes = _bytes_per_token(self.allocator.get_kvcache())
        history = bool(required & {Need.HISTORY, Need.MODEL_RUNNER})
        self.text = TextStore(self.pool.req_to_token, self.vocab_size) if history else None
        self._keeps_logits = Need.TARGET_PASS in required
        self.hidden = HiddenStates(len(self.pool.req_to_token)) if Need.HIDDEN_STATES in required else None
        offered = {
            Need.TARGET_RUNNER: True,
            Need.TARGET_PASS: True,
            Need.HISTORY: history,
            Need.MODEL_RUNNER: draft is not None,
            Need.HIDDEN_STATES: self.hidden is not None,
            Need.TOKENIZER: target.tokenizer is not None,
        }
        self.capabilities = frozenset(need for need, there in offered.items() if there)
        self.runners: list[SelfRunner] = []
        self.graphs = Graphs()
        self.draft_cache: DraftCache | None = None
        self.schedule: ScheduleBatch
        self.outcome: Outcome | None = None

    def take(self, schedule: ScheduleBatch) -> None:
        """The batch that the next round is for."""
        self.schedule = schedule
        self.outcome = None
        self.indices: Tensor = schedule.req_pool_indices
        self.lengths: Tensor = schedule.seq_lens.long()
        self.lengths_cpu: list[int] = schedule.seq_lens_cpu.tolist()
        self.table = SlotTable(self.pool.req_to_token, self.indices.long())
        assert isinstance(schedule.spec_info, RoundRelay)
        self.relay = schedule.spec_info

    @property
    def weight_bytes(self) -> float:
        """Bytes of the target's weights that a forward reads, on this rank."""
        return weight_bytes(self.target.model_runner)

    def tokenize(self, text: str) -> Tensor:
        """The tokens of `text`, no special ones added: [n] int64."""
        return torch.tensor(self.target.tokenizer.encode(text, add_special_tokens=False), dtype=torch.int64)

    # --- what a round asks

    def batch(self) -> Batch:
        """The requests of the scheduler's batch."""
        reqs, newest = self.schedule.reqs, self.relay.accept_tokens.view(len(self.schedule.reqs), -1)
        last = (self.relay.accept_lens.long() - 1).clamp(min=0)
        context = max(self.lengths_cpu)
        history = self.text is not None
        return Batch(
            rows=tuple(req.rid for req in reqs),
            roots=newest.gather(1, last[:, None]).squeeze(1).long(),
            lengths=self.lengths,
            seeds=torch.tensor(self.requests.seeds(reqs), device=self.device),
            sampling=not self.schedule.sampling_info.is_all_greedy,
            context=context,
            room=max(1, max(self._room(req, n) for req, n in zip(reqs, self.lengths_cpu, strict=True))),
            history=self.text.rows(self.indices, context + 1) if self.text is not None else None,
            history_ends=self.lengths + 1 if history else None,
            history_starts=torch.zeros_like(self.lengths) if history else None,
            hidden=None if self.hidden is None else self.hidden.rows(self.indices),
        )

    def _room(self, req: Any, length: int) -> int:
        generated = length + 1 - len(req.origin_input_ids)
        return req.sampling_params.max_new_tokens - generated

    def runner(self, model: Any | None, policy: KVPolicy, skipped: SkippedLayers | None = None) -> DraftRunner:
        """The target (None) or the server's draft model, drafting over what `policy` selects."""
        check_layout(policy)
        if model is not None and self.draft is None:
            raise UnsupportedError("The server has no draft model; start it with --speculative-draft-model-path.")
        worker = self.target if model is None else self.draft
        made = (SelfRunner if model is None else ModelRunner)(self, worker.model_runner, policy)
        self.runners.append(made)
        return made

    def verify(self, batch: Batch, trees: TreeBatch) -> Tensor:
        """Forward all nodes over the whole cache: logits [B, N, V]."""
        schedule, nodes = self.schedule, trees.num_nodes
        positions = (self.lengths[:, None] + trees.depths).clamp(max=self.last_position)
        on_cpu = self.device.type == "cpu"
        schedule.forward_mode = ForwardMode.TARGET_VERIFY
        tokens = trees.tokens if trees.valid is None else trees.tokens.where(trees.valid, 0)
        schedule.input_ids = tokens.flatten()
        schedule.out_cache_loc = self.slots(torch.arange(nodes, device=self.device)).flatten()
        schedule.spec_info = TreeInput(
            tokens,
            positions,
            mask=None if on_cpu else flat_mask(self.lengths, sum(self.lengths_cpu), trees.ancestors),
            view=verify_view(self.table, self.lengths, batch.context, trees.ancestors, trees.depths)
            if on_cpu
            else None,
        )
        captured = None if self.hidden is None else CaptureHiddenMode.FULL
        with self.graphs.verifying(nodes):
            result = self.target.forward_batch_generation(schedule, is_verify=True, capture_hidden_mode=captured)
        logits = result.logits_output.next_token_logits
        self._result = result
        logits = logits.view(batch.num_rows, nodes, -1)
        # who is given them looks a round later, when a graph may have been replayed over them
        return logits.clone() if self._keeps_logits else logits

    def distributions(self, batch: Batch, logits: Tensor, trees: TreeBatch) -> Targets:
        """Penalties, grammar and logit bias in SGLang's order at every node, then the sampling law."""
        schedule, sampling = self.schedule, self.schedule.sampling_info
        scores = logits.float()
        outputs = [n + 1 - len(req.origin_input_ids) for req, n in zip(schedule.reqs, self.lengths_cpu, strict=True)]
        if penalties.needed(schedule.reqs, outputs):
            rows = zip(schedule.reqs, self.lengths_cpu, self._relayed(), strict=True)
            scores = penalties.apply(scores, schedule.reqs, [written(*row) for row in rows], trees)
        if schedule.has_grammar:
            scores = grammar.mask_logits(scores.contiguous(), schedule.reqs, sampling, trees)
        if sampling.logit_bias is not None:
            scores = scores + sampling.logit_bias[:, None]
        # log-probabilities are of these
        self._result.logits_output.next_token_logits = scores.view(-1, scores.shape[-1])
        if batch.sampling:
            return Targets(probs=laws.target_law(scores, sampling))
        return Targets(tokens=scores.argmax(-1))

    def _relayed(self) -> list[list[int]]:
        """The tokens of each row's last round, which its request may not have yet."""
        tokens = self.relay.accept_tokens.view(len(self.lengths_cpu), -1).tolist()
        return [row[:count] for row, count in zip(tokens, self.relay.accept_lens.tolist(), strict=True)]

    def draft_law(self, batch: Batch, logits: Tensor) -> Tensor:
        """Temperature, top-k, top-p and min-p of each row on a draft's logits [B, w, V]: float32 probabilities."""
        return laws.draft_law(logits, self.schedule.sampling_info)

    def commit(self, batch: Batch, trees: TreeBatch, verdict: Verdict) -> Commit:
        """Keep the accepted path's KV. SGLang appends the tokens, and cuts them where a request ends.

        What it will cut for length is left out of what is reported; stop tokens and strings it finds only later.
        """
        if not (trees.num_nodes == 1 or (trees.shape is not None and trees.shape.is_chain)):
            self._move_path(verdict)
        if self.text is not None:
            self.text.append(self.indices, self.lengths + 1, verdict.tokens(trees))
        if self.hidden is not None:
            self._keep_hidden(trees.num_nodes, verdict)
        self.outcome = Outcome(self._result.logits_output, self._result.can_run_cuda_graph, trees, verdict)
        room = [self._room(req, n) for req, n in zip(self.schedule.reqs, self.lengths_cpu, strict=True)]
        left = torch.tensor(room, device=self.device).clamp(min=1)
        return Commit(num_new=torch.minimum(verdict.num_accepted + 1, left))

    def padded_tokens(self, sizes: Sequence[int]) -> int:
        """Rows are padded to the widest: SGLang's verify has one width."""
        return len(sizes) * max(sizes)

    # --- how it is done

    def slots(self, nodes: Tensor) -> Tensor:
        """The slots of `nodes` [n] or [B, n] of every row's tree: [B, n] int64."""
        return self.table.at(self.lengths[:, None] + nodes)

    def _keep_hidden(self, nodes: int, verdict: Verdict) -> None:
        """Of the last accepted node of every row: the bonus was chosen there."""
        last = verdict.path.gather(1, verdict.num_accepted[:, None].long()).squeeze(1)
        places = last + nodes * torch.arange(len(last), device=self.device)
        assert self.hidden is not None
        self.hidden.write(self.indices, self._result.logits_output.hidden_states, places)

    def _move_path(self, verdict: Verdict) -> None:
        """KV of the accepted nodes to the slots that follow the row's text, in the target's pool and in the draft's."""
        path = verdict.path
        step = torch.arange(path.shape[1], device=self.device)
        source = self.slots(path)
        target = torch.where(step <= verdict.num_accepted[:, None], self.slots(step), source)
        for worker in (self.target, self.draft):
            if worker is not None:
                worker.model_runner.token_to_kv_pool.move_kv_cache(target.flatten(), source.flatten())


def _bytes_per_token(pool: Any) -> int:
    """Bytes of one token's keys and values over all layers; 0 if the pool does not say."""
    try:
        keys, values = pool.get_kv_size_bytes()[:2]
    except (AttributeError, TypeError, ValueError):
        return 0
    return int(keys + values) // max(1, pool.size)
