"""SGLang's part of a captured draft: its graph backend and memory pool, and attention of its own over our static inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from sglang.srt.distributed.parallel_state import graph_capture
from sglang.srt.layers.dp_attention import set_is_extend_in_batch
from sglang.srt.model_executor.forward_batch_info import CaptureHiddenMode, ForwardBatch, ForwardMode
from sglang.srt.model_executor.forward_context import ForwardContext, forward_context
from sglang.srt.model_executor.runner.shape_key import ShapeKey
from sglang.srt.model_executor.runner_backend.utils import resolve_decode_backend
from sglang.srt.model_executor.runner_utils.capture_mode import model_capture_mode
from sglang.srt.model_executor.runner_utils.pool import get_or_create_global_graph_capture_stream
from sglang.srt.runtime_context import get_model
from sglang.srt.speculative.spec_info import SpecInput, SpecInputType
from torch import Tensor

from specplug_sglang.graphs.static import StaticInputs


class StaticDraft(SpecInput):
    """The slot lists of the first `size` tokens, as SGLang's decode graphs of its own multi-step drafts take them."""

    def __init__(self, inputs: StaticInputs, size: int) -> None:
        super().__init__(SpecInputType.EAGLE_DRAFT)
        self.num_tokens_per_req = self.num_tokens_for_logprob_per_req = 1
        self.kv_indptr, self.kv_indices = inputs.indptr[: size + 1], inputs.indices


class DraftRecorder:
    """A `Recorder` of one model runner's decode forwards, in the memory pool of SGLang's own graphs."""

    def __init__(self, runner: Any, inputs: StaticInputs) -> None:
        # these two names are what SGLang's graph backend asks of whoever owns it
        self.model_runner, self.device_module = runner, torch.get_device_module(runner.device)
        self._inputs = inputs
        self._attention, self._plan = _attention(runner, inputs)
        self._graphs = resolve_decode_backend(self)
        self._batches: dict[int, ForwardBatch] = {}

    def record(self, size: int) -> None:
        """Capture a forward of `size` tokens; its warm-up runs write to slot 0 alone."""
        batch = self._batch(size)

        def forward() -> Tensor:
            with forward_context(ForwardContext(attn_backend=self._attention), forward_batch=batch):
                self._attention.init_forward_metadata_in_graph(batch)
                set_is_extend_in_batch(False)
                return self.model_runner.model.forward(batch.input_ids, batch.positions, batch).next_token_logits

        with self._capturing():
            self._attention.init_forward_metadata_out_graph(batch, in_capture=True)
            reset = getattr(self._attention, "on_after_cuda_graph_warmup", None)
            self._graphs.capture_one(ShapeKey(size=size), forward, post_warmup_hook=reset)
        self._batches[size] = batch

    def replay(self, size: int) -> Tensor:
        """See `Recorder`."""
        self._plan(self._batches[size])
        return self._graphs.replay(ShapeKey(size=size), self._batches[size])

    @contextmanager
    def _capturing(self) -> Iterator[None]:
        """What SGLang's DecodeCudaGraphRunner captures under."""
        with (
            get_model().override(shared_experts=self.model_runner.model.shared_experts_config),
            model_capture_mode(),
            graph_capture(stream=get_or_create_global_graph_capture_stream()) as context,
            self._graphs.capture_session(context.stream),
        ):
            yield

    def _batch(self, size: int) -> ForwardBatch:
        inputs = self._inputs
        return ForwardBatch(
            forward_mode=ForwardMode.DECODE,
            batch_size=size,  # every token is a row
            input_ids=inputs.tokens[:size],
            req_pool_indices=inputs.rows[:size],
            seq_lens=inputs.lengths[:size],
            out_cache_loc=inputs.write[:size],
            seq_lens_sum=size,
            positions=inputs.positions[:size],
            spec_algorithm=self.model_runner.spec_algorithm,
            spec_info=StaticDraft(inputs, size),
            capture_hidden_mode=CaptureHiddenMode.NULL,
        )


def _attention(runner: Any, inputs: StaticInputs) -> tuple[Any, Callable[[ForwardBatch], None]]:
    """A backend like `runner`'s whose buffers are `inputs`, and what it needs done before every replay.

    One of its own, as SGLang's multi-step drafts have: the verify graphs hold the addresses of the other's buffers.
    """
    kind = type(runner.attn_backend)
    shared = {"kv_indptr_buf": inputs.indptr}
    if kind.__name__ == "FlashInferAttnBackend":
        shared["kv_last_page_len_buf"] = torch.ones_like(inputs.indptr[1:])
    backend = kind(runner, skip_prefill=True, **shared)
    backend.init_cuda_graph_state(inputs.size, inputs.size, kv_indices_buf=inputs.indices)
    if kind.__name__ == "FlashInferAttnBackend":
        return backend, backend.init_forward_metadata_out_graph

    def split(batch: ForwardBatch) -> None:
        """Triton's graph reads the lists as they are; into how many parts each is split depends on their lengths."""
        size = batch.batch_size
        backend.get_num_kv_splits(backend.cuda_graph_num_kv_splits[:size], inputs.counts(size))

    return backend, split
