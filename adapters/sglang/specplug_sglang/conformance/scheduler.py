"""SGLang's real scheduler in this process, told between its steps what comes and goes: no server, no other processes."""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sglang.srt.distributed.parallel_state import destroy_distributed_environment, destroy_model_parallel
from sglang.srt.managers.io_struct import AbortReq, TokenizedGenerateReqInput
from sglang.srt.managers.scheduler import Scheduler
from sglang.srt.managers.scheduler_components.ipc_channels import SchedulerIpcChannels
from sglang.srt.managers.scheduler_components.output_sender import SenderWrapper
from sglang.srt.plugins import load_plugins
from sglang.srt.runtime_context import SpawnRanks, publish
from sglang.srt.sampling.sampling_params import SamplingParams
from sglang.srt.server_args import PortArgs, ServerArgs

from specplug_sglang import ALGORITHM
from specplug_sglang.config import VARIABLE

# The widest round that a case may ask for: SGLang reserves for it once, when it starts.
CONFIG = {"drafter": "model", "tree": "chain:length=31", "controller": "fixed"}
ROWS, TOKENS = 8192, 2**19  # samples of a chi-square test are rows of one batch


class SteppedScheduler(Scheduler):
    """A scheduler whose requests come from `between`, which is called before every step; it ends the loop when it returns False."""

    between: Callable[[], bool] = staticmethod(lambda: False)

    def init_ipc_channels(self, port_args: PortArgs) -> None:
        """No sockets: nobody listens."""
        nobody = SenderWrapper(None)  # type: ignore[arg-type]
        self.ipc_channels = SchedulerIpcChannels(
            recv_from_tokenizer=None,  # type: ignore[arg-type]
            recv_from_rpc=None,
            send_to_tokenizer=nobody,
            send_to_detokenizer=nobody,
            send_metrics_from_scheduler=None,
        )
        self.load_snapshot_writer = self.recv_from_tokenizer = None

    def ingest_requests(self, stop_at_pause: bool = False) -> list[Any]:
        """What comes and goes before this step."""
        self.gracefully_exit = not self.between()
        return []

    def run(self, between: Callable[[], bool]) -> None:
        """SGLang's own loop, until `between` returns False."""
        self.between = between
        try:
            self.event_loop_normal()
        finally:
            self.gracefully_exit = False

    def add(self, name: str, prompt: tuple[int, ...], **sampling: Any) -> Any:
        """A request; `sampling` are SGLang's sampling parameters. Returns SGLang's record of it."""
        parameters = SamplingParams(**sampling)
        parameters.normalize(None)
        parameters.verify(self.model_config.vocab_size)
        self.handle_generate_request(
            TokenizedGenerateReqInput(
                rid=name, input_text="", input_ids=array("q", prompt), input_embeds=None, mm_inputs=None,
                token_type_ids=None, sampling_params=parameters, return_logprob=False, logprob_start_len=-1,
                top_logprobs_num=0, token_ids_logprob=None, stream=False,
            )
        )  # fmt: skip
        return self.waiting_queue[-1]

    def abort(self, name: str) -> None:
        """Let the request called `name` go; "" means all."""
        self.abort_request(AbortReq(rid=name, abort_all=not name))

    def free_slots(self) -> tuple[int, int]:
        """KV slots and request rows that nobody holds."""
        return self.token_to_kv_pool_allocator.available_size(), self.req_to_token_pool.available_size()


def start(target: Path, draft: Path) -> SteppedScheduler:
    """A scheduler of `target` under SPECPLUG, `draft` loaded beside it; on a GPU where there is one.

    SGLang keeps its configuration once per process: the scheduler that was started before is of no use any more.
    """
    load_plugins()
    destroy_model_parallel()
    destroy_distributed_environment()
    os.environ[VARIABLE] = json.dumps(CONFIG)
    arguments = ServerArgs(
        model_path=str(target), speculative_algorithm=ALGORITHM, speculative_draft_model_path=str(draft),
        skip_tokenizer_init=True, disable_overlap_schedule=True, dtype="float32", log_level="error",
        max_total_tokens=TOKENS, max_running_requests=ROWS, chunked_prefill_size=-1, max_prefill_tokens=2**17,
        mem_fraction_static=0.3, disable_cuda_graph=True, sampling_backend="pytorch",
    )  # fmt: skip
    publish(arguments, role="scheduler", ranks=SpawnRanks(world_rank=0, gpu_id=0))
    return SteppedScheduler(arguments, PortArgs.init_new(arguments))
