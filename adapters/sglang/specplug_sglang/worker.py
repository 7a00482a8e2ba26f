"""The worker that SGLang's scheduler calls once per batch: prompts as SGLang runs them, then one round a call."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from sglang.srt.layers.logprob_processor import compute_spec_logprobs
from sglang.srt.managers.schedule_batch import ScheduleBatch
from sglang.srt.managers.utils import GenerationBatchResult
from sglang.srt.model_executor.forward_batch_info import CaptureHiddenMode, ForwardMode
from sglang.srt.runtime_context import get_parallel
from sglang.srt.speculative.base_spec_worker import BaseSpecWorker
from sglang.srt.speculative.spec_utils import record_stream_for_v2_verify
from torch import Tensor

from specplug import OptionError, Round, run_round
from specplug.drafters import ModelDraft
from specplug.random import VERIFY_STREAM, draw, uniforms
from specplug.speculator import Speculator
from specplug_sglang.agreement import AgreedController, broadcast_over
from specplug_sglang.arguments import words_of
from specplug_sglang.config import speculator_of
from specplug_sglang.draft import load_draft
from specplug_sglang.draft_prompts import DraftPrompts
from specplug_sglang.graphs import Graphs
from specplug_sglang.host import Outcome, SGLangHost
from specplug_sglang.inputs import RoundRelay
from specplug_sglang.laws import cut
from specplug_sglang.metrics import RoundMetrics
from specplug_sglang.requests import Requests, tokens_of
from specplug_sglang.runners import ModelRunner

logger = logging.getLogger(__name__)

Publish = Callable[[Tensor], None]


class SpecplugWorker(BaseSpecWorker):
    """SGLang's side of a server's one `Session`. Rows join and leave with the scheduler's batches."""

    def __init__(self, server_args: Any, gpu_id: int, nccl_port: int, target_worker: Any) -> None:
        super().__init__()
        self._target_worker = target_worker
        self.speculator = speculator_of(words_of(server_args), server_args.speculative_draft_model_path)
        drafts = [drafter for drafter in self.speculator.drafters if isinstance(drafter, ModelDraft)]
        self._draft_worker = load_draft(server_args, gpu_id, nccl_port, target_worker) if drafts else None
        self.metrics = RoundMetrics(server_args.enable_metrics)
        self._width, self._nodes = self.speculator.max_tokens, self.speculator.max_nodes
        self._pending: deque[Round] = deque()
        self._graphs = Graphs()
        self._failures = 0
        self.failure: Exception | None = None

    # --- what SGLang asks at set-up

    def alloc_memory_pool(self, **pools: Any) -> None:
        """The target's pools exist now, and with them everything a host needs."""
        super().alloc_memory_pool(**pools)
        self._draft_prompts = None if self._draft_worker is None else DraftPrompts(self._draft_worker)
        self.serve(self.speculator)

    def init_cuda_graphs(self) -> None:
        """The target's own graphs exist now; the other widths and the drafts are ours to capture."""
        if self._draft_worker is not None:
            self._draft_worker.init_cuda_graphs(capture_decode_cuda_graph=False)  # it would capture verify forwards
        if self.host.device.type == "cuda":
            from specplug_sglang.graphs.setup import capture_graphs  # noqa: PLC0415  (only a GPU needs it)

            self.host.graphs = self._graphs = capture_graphs(self.host, self.speculator)

    def serve(self, speculator: Speculator) -> None:
        """From now on `speculator`'s set-up, in a session of its own. No request may be running.

        Raises `OptionError` for trees that are larger than what the server reserved for at its start.
        """
        if speculator.max_tokens > self._width or speculator.max_nodes > self._nodes:
            raise OptionError(
                f"A tree of {speculator.max_nodes} nodes and depth {speculator.max_tokens - 1}; the server was started for "
                f"{self._nodes} and {self._width - 1}. Start it with the larger tree."
            )
        self.speculator, self.failure = speculator, None
        self._pending.clear()
        required = frozenset().union(*(drafter.required for drafter in speculator.drafters))
        seed = speculator.seed
        requests = Requests(self._target_worker.random_seed if seed is None else seed)
        self.host = SGLangHost(self._target_worker, self._draft_worker, requests, required)
        self.host.graphs = self._graphs
        if self._draft_prompts is not None:
            self.host.draft_cache, self._draft_prompts.idle = self._draft_prompts.cache, 0
        self.session = speculator.open(self.host)
        self.plain = Speculator(drafter="none", controller="fixed").open(self.host)
        parallel = get_parallel()
        if parallel.tp_size > 1:
            broadcast = broadcast_over(parallel.tp_group)
            self.session.controller = AgreedController(self.session.controller, parallel.tp_rank, broadcast)

    def weight_update_runners(self) -> list[tuple[str, Any]]:
        """The draft's weights can be updated like the target's."""
        return [] if self._draft_worker is None else [("draft", self._draft_worker.model_runner)]

    def clear_cache_pool(self) -> None:
        """The scheduler has cleared the pools; nothing of ours hangs on them."""

    # --- one batch

    def forward_batch_generation(
        self, batch: ScheduleBatch, on_publish: Publish | None = None, pp_proxy_tensors: Any = None
    ) -> GenerationBatchResult:
        """Run a prompt, or one round for every request of the batch; see SGLang's BaseSpecWorker."""
        if batch.forward_mode.is_decode():
            return self._round(batch, on_publish)
        return self._prompt(batch, on_publish, pp_proxy_tensors)

    def _prompt(self, batch: ScheduleBatch, on_publish: Publish | None, proxy: Any) -> GenerationBatchResult:
        hidden = self.host.hidden
        result = self._target_worker.forward_batch_generation(
            batch, pp_proxy_tensors=proxy, capture_hidden_mode=None if hidden is None else CaptureHiddenMode.LAST
        )
        if hidden is not None and not batch.forward_mode.is_idle():
            hidden.write(batch.req_pool_indices, result.logits_output.hidden_states)
        self._seed_first_tokens(batch, result)
        lengths, first = batch.seq_lens.clone(), result.next_token_ids
        if self._draft_prompts is not None and not batch.forward_mode.is_idle():
            self._draft_prompts.prompt(batch, self.host, self._model_runners())
        if self.host.text is not None:
            self._write_texts(batch, first)
        if on_publish is not None:
            on_publish(lengths)
        result.next_draft_input = self._relay(first[:, None], torch.ones_like(first, dtype=torch.int32), lengths)
        result.accept_lens = result.next_draft_input.accept_lens
        result.new_seq_lens = lengths
        result.speculative_num_draft_tokens = self._width
        return result

    def _seed_first_tokens(self, batch: ScheduleBatch, result: GenerationBatchResult) -> None:
        """First tokens of requests with a seed of their own, drawn again by it: SGLang's sampler has drawn them by none.

        The sampler leaves the law it drew from, before top-k, top-p and min-p, in the place of the logits.
        """
        sampling, law = batch.sampling_info, result.logits_output.next_token_logits
        own = [place for place, req in enumerate(batch.reqs) if req.sampling_params.sampling_seed is not None]
        if not own or sampling.is_all_greedy or not torch.allclose(law.sum(-1), law.new_ones(len(law)), atol=1e-3):
            return
        seeds = torch.tensor(self.host.requests.seeds(batch.reqs), device=law.device)
        uniform = uniforms(seeds, batch.seq_lens.long() - 1, VERIFY_STREAM, 1)[:, 0]
        drawn = draw(cut(law[:, None].float(), sampling)[:, 0], uniform).to(result.next_token_ids.dtype)
        result.next_token_ids[own] = drawn[own]
        if batch.return_logprob:
            log_probabilities = law.gather(1, drawn[:, None].long()).log().squeeze(1)
            result.logits_output.next_token_logprobs[own] = log_probabilities[own]

    def _model_runners(self) -> list[ModelRunner]:
        return [runner for runner in self.host.runners if isinstance(runner, ModelRunner)]

    def _write_texts(self, batch: ScheduleBatch, first: Tensor) -> None:
        assert self.host.text is not None
        for req, row, length in zip(
            batch.reqs, batch.req_pool_indices_cpu.tolist(), batch.seq_lens_cpu.tolist(), strict=True
        ):
            self.host.text.begin(row, tokens_of(req)[:length])
        self.host.text.append(batch.req_pool_indices, batch.seq_lens.long(), first[:, None])

    def _round(self, batch: ScheduleBatch, on_publish: Publish | None) -> GenerationBatchResult:
        if batch.device != "cpu":
            stream = torch.get_device_module(batch.device).current_stream()
            record_stream_for_v2_verify(batch, None, stream)
        self._forget(self.host.requests.departed(batch.reqs))
        self.host.take(batch)
        rows, runners = [req.rid for req in batch.reqs], self._model_runners()
        if self._draft_prompts is not None:
            self._draft_prompts.settle(rows, runners)
        for runner in runners:
            runner.settle(rows, self.host.lengths_cpu)
        finished = self._run(batch)
        outcome = self.host.outcome
        assert outcome is not None
        verdict = outcome.verdict
        lens = (verdict.num_accepted + 1).to(torch.int32)
        lengths = self.host.lengths + lens
        tokens = verdict.tokens(outcome.trees)
        if self._draft_prompts is not None:
            drafted = isinstance(finished.plan.arm.drafter, ModelDraft)
            self._draft_prompts.round(self.host, runners, drafted, tokens.shape[1])
        if batch.return_logprob:
            _log_probabilities(batch, outcome, tokens)
        if on_publish is not None:
            on_publish(lengths)
        batch.forward_mode = ForwardMode.DECODE
        self._pending.append(finished)
        relay = self._relay(tokens, lens, lengths)
        return GenerationBatchResult(
            logits_output=outcome.logits_output,
            next_token_ids=relay.accept_tokens,
            can_run_cuda_graph=outcome.graph,
            accept_lens=lens,
            new_seq_lens=lengths,
            next_draft_input=relay,
            speculative_num_draft_tokens=self._width,
        )

    def _run(self, batch: ScheduleBatch) -> Round:
        """A round; one without speculation if its draft fails, so that no request pays for a drafter's fault."""
        try:
            return run_round(self.host, self.session)
        except Exception as error:
            if not batch.forward_mode.is_decode():
                raise  # the target has been run: not the draft's fault, and not to be repeated
            self._failures, self.failure = self._failures + 1, error
            self.metrics.failed()
            if self._failures <= 10:
                logger.exception("specplug: drafting failed; this round goes on without (failure %d).", self._failures)
            return run_round(self.host, self.plain)

    def _relay(self, tokens: Tensor, lens: Tensor, lengths: Tensor) -> RoundRelay:
        """The rows' new tokens [B, P] padded to the width that all rounds share."""
        padded = torch.nn.functional.pad(tokens.long(), (0, self._width - tokens.shape[1]))
        return RoundRelay(self._width, padded.flatten(), lens, lengths)

    def on_verify_complete_cpu(self, num_correct_drafts_per_req: list[int], batch_size: int = 0) -> None:
        """SGLang has the oldest round's result on the CPU: only now is it looked at, so that nothing waits for the device."""
        if not self._pending:
            return
        finished = self._pending.popleft()
        self.session.observe(finished)
        self.metrics.observe(finished)

    def _forget(self, rows: list[str]) -> None:
        if rows:
            self.session.forget(rows)
            for runner in self._model_runners():
                runner.forget(rows)


def _log_probabilities(batch: ScheduleBatch, outcome: Outcome, tokens: Tensor) -> None:
    """Log-probabilities of the new tokens [B, P], each under the law of the node it follows."""
    nodes, path = outcome.trees.num_nodes, outcome.verdict.path
    index = path + nodes * torch.arange(len(path), device=path.device)[:, None]
    emitted = torch.zeros(len(path) * nodes, dtype=torch.int64, device=path.device)
    step = torch.arange(path.shape[1], device=path.device)
    real = step <= outcome.verdict.num_accepted[:, None]
    emitted[index[real]] = tokens[real]
    compute_spec_logprobs(batch, outcome.logits_output, emitted, accept_index=index)
