"""What is captured when a server starts, after SGLang has captured its own graphs."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.model_executor.cuda_graph_config import Backend, Phase, check_cuda_graph_backend
from sglang.srt.runtime_context import get_context, get_parallel, get_spec
from sglang.srt.utils import get_available_gpu_memory

from specplug import SpecplugError
from specplug.speculator import Speculator
from specplug_sglang.graphs import Graphs
from specplug_sglang.graphs.draft import DraftGraphs
from specplug_sglang.graphs.recorder import DraftRecorder
from specplug_sglang.graphs.sizes import fits, token_counts
from specplug_sglang.graphs.static import StaticInputs
from specplug_sglang.graphs.verify import VerifyGraphs, Width
from specplug_sglang.inputs import INDEX_DTYPES

if TYPE_CHECKING:
    from specplug_sglang.host import SGLangHost

logger = logging.getLogger(__name__)


def capture_graphs(host: SGLangHost, speculator: Speculator) -> Graphs:
    """The graphs of a server whose target SGLang has captured; where it has not, none."""
    runner = host.target.model_runner
    if host.device.type != "cuda" or runner.decode_cuda_graph_runner is None:
        return Graphs()
    made = Graphs(_verify_graphs(runner, speculator))
    for model in {drafting.runner: None for drafting in host.runners}:
        drafts = _draft_graphs(model, host, speculator)
        if drafts is not None:
            made.drafts[model] = drafts
    return made


def _verify_graphs(runner: Any, speculator: Speculator) -> VerifyGraphs:
    own = runner.decode_cuda_graph_runner.captured_req_width
    made = VerifyGraphs(runner, own)
    for width in sorted(set(speculator.widths) - {own}, reverse=True):
        made.capture(width, lambda width: _capture_width(runner, width, own), _on_every_rank)
    logger.info("specplug: CUDA graphs for verifies of %s nodes.", made.widths)
    return made


def _capture_width(runner: Any, width: int, own: int) -> Width:
    """SGLang's verify graphs for trees of `width`, made as its `--speculative-adaptive` makes those of its step counts."""
    free = get_available_gpu_memory(runner.device, runner.gpu_id)
    if not _on_every_rank(fits(width, own, runner.graph_memory_usage.get("target_verify", 0.0), free)):
        raise SpecplugError(f"{free:.1f} GB of GPU memory are left; lower --mem-fraction-static for more")
    with _spec_width(width):
        attention = runner._get_attention_backend()
        for name in ("prefill_attention_backend_str", "decode_attention_backend_str"):
            setattr(attention, name, getattr(runner.attn_backend, name))
        capture = type(runner.decode_cuda_graph_runner)
        return Width(attention, capture(runner, attn_backend=attention, speculative_num_draft_tokens=width))


@contextmanager
def _spec_width(width: int) -> Iterator[None]:
    """SGLang's attention backends size themselves by the server's setting."""
    before = get_spec().speculative_num_draft_tokens
    get_context().override("specplug.capture", speculative_num_draft_tokens=width)
    try:
        yield
    finally:
        get_context().override("specplug.captured", speculative_num_draft_tokens=before)


def _draft_graphs(model: Any, host: SGLangHost, speculator: Speculator) -> DraftGraphs | None:
    captured = host.target.model_runner.decode_cuda_graph_runner
    reason = _why_eager(model, captured)
    budgets = [drafting.policy.budget for drafting in host.runners if drafting.runner is model]
    budget = max((budget for budget in budgets if budget is not None), default=None)
    if budget is None:
        reason = reason or "they read all of the context, which grows"
    sizes = token_counts(captured.capture_bs, _level_sizes(speculator))
    if reason is not None or not sizes:
        logger.info("specplug: draft forwards run eagerly: %s.", reason or "batches are too large")
        return None
    assert budget is not None
    inputs = StaticInputs(
        max(sizes), budget + speculator.max_nodes, model.device, INDEX_DTYPES[type(model.attn_backend).__name__]
    )
    recorder = None
    try:
        recorder = DraftRecorder(model, inputs)
    except Exception as error:  # memory, or an interface of SGLang's: neither must cost the server its start
        logger.warning("specplug: no CUDA graphs for drafts: %r. They run eagerly.", error)
    if not _on_every_rank(recorder is not None) or recorder is None:
        return None
    made = DraftGraphs(inputs, recorder)
    made.capture(sizes, _on_every_rank)
    logger.info("specplug: CUDA graphs for drafts of %s tokens.", made.sizes)
    return made


def _level_sizes(speculator: Speculator) -> set[int]:
    """Nodes of the levels that are forwarded: the last level's are leaves, whose logits nobody asks for."""
    return {1} | {stop - start for shape in speculator.shapes for start, stop in shape.levels[:-1]}


def _why_eager(model: Any, captured: Any) -> str | None:
    """Why this model's drafts are not captured: what SGLang's own capture does for it and ours does not."""
    reasons = (
        (not check_cuda_graph_backend(Phase.DECODE, Backend.FULL), "the server's graphs are not full ones"),
        (type(model.attn_backend).__name__ not in INDEX_DTYPES, "of the attention backend"),
        (model.sliding_window_size is not None, "the model has a sliding window"),
        (model.lora_manager is not None, "LoRA is on"),
        (model.model_config.model_is_mrope, "the model's positions are multimodal"),
        (captured.require_gathered_buffer, "inputs are gathered from several ranks"),
        (not hasattr(model.model, "shared_experts_config"), "SGLang is older than 0.5.23"),
        (
            hasattr(model.model, "prepare_for_forward") or hasattr(model.model, "prepare_forward_batch"),
            "the model prepares every forward on the host",
        ),
    )
    return next((reason for applies, reason in reasons if applies), None)


def _on_every_rank(holds: bool) -> bool:
    parallel = get_parallel()
    if parallel.tp_size == 1:
        return holds
    flag = torch.tensor([int(holds)])
    torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MIN, group=parallel.tp_group.cpu_group)
    return bool(flag.item())
