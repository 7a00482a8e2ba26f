"""The server's draft model: SGLang's own worker, with a KV pool of its own that the target's slots index."""

from __future__ import annotations

from typing import Any

from sglang.srt.configs.draft_parallel import DraftParallelSpec, DraftTPExecution
from sglang.srt.layers.moe.utils import draft_model_build_scope
from sglang.srt.managers.tp_worker import TpModelWorker
from sglang.srt.speculative.draft_parallel import resolve_draft_parallel_layout
from sglang.srt.speculative.spec_utils import draft_pp_context, draft_tp_context

from specplug import UnsupportedError


def load_draft(server_args: Any, gpu_id: int, nccl_port: int, target: TpModelWorker) -> TpModelWorker:
    """The worker of `--speculative-draft-model-path`, weights loaded. Raises `UnsupportedError` if it cannot draft for `target`."""
    layout = resolve_draft_parallel_layout(DraftParallelSpec(tp_execution=DraftTPExecution.TARGET_LAYOUT))
    with draft_tp_context(layout), draft_pp_context(), draft_model_build_scope():
        draft = TpModelWorker(
            server_args=server_args,
            gpu_id=gpu_id,
            nccl_port=nccl_port,
            is_draft_worker=True,
            context_length=target.model_runner.model_config.context_len,  # it runs at the target's positions
        )
    check_vocabularies(target.model_runner.model_config.vocab_size, draft.model_runner.model_config.vocab_size)
    return draft


def check_vocabularies(target: int, draft: int) -> None:
    """Raise `UnsupportedError` unless both have the same number of tokens."""
    if target != draft:
        raise UnsupportedError(
            f"Target and draft have different vocabularies: {target} and {draft} tokens. Use a draft with the target's "
            "tokenizer."
        )
