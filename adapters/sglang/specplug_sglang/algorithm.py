"""The algorithm as SGLang's registry knows it: what it is like, what it needs of the server, what it refuses."""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.speculative.spec_registry import CustomSpecAlgo

from specplug import SpecplugError, UnsupportedError
from specplug_sglang import ALGORITHM
from specplug_sglang.arguments import words_of
from specplug_sglang.capabilities import OFFERED
from specplug_sglang.config import speculator_of

# Settings of a server that this adapter does not serve: the field, what it must be, and why.
_REFUSED: tuple[tuple[str, Any, str], ...] = (
    ("pp_size", 1, "a round needs the whole target in one process group"),
    ("enable_dp_attention", False, "its batches differ between ranks"),
    ("speculative_adaptive", False, 'specplug\'s own controller decides; choose it with "controller"'),
    ("enable_custom_logit_processor", False, "a custom processor cannot be applied to every node with its own prefix"),
    ("enable_return_hidden_states", False, "hidden states of tree nodes are not returned"),
    ("enable_multi_layer_eagle", False, "it belongs to EAGLE"),
    ("disaggregation_mode", "null", "draft state is not transferred between servers"),
    ("enable_two_batch_overlap", False, "a round is not split in two"),
    ("enable_watermark", False, "watermarks are applied by SGLang's own verification"),
)
CPU_BACKEND = "torch_native"
GPU_BACKENDS = ("triton", "flashinfer")


class SpecplugAlgorithm(CustomSpecAlgo):
    """SPECPLUG. It goes SGLang's NGRAM ways through scheduler and relay: trees of any topology, no draft state of SGLang's."""

    def is_ngram(self) -> bool:
        """Dispatch as for NGRAM: relay of accepted tokens, verify inputs with a tree mask, grammars in step."""
        return True

    def carries_draft_hidden_states(self) -> bool:
        """No draft state crosses between servers."""
        return False

    def need_topk(self) -> bool:
        """The relay holds tokens only."""
        return False

    def create_future_map(self, device: torch.device, *args: Any, **kwargs: Any) -> Any:
        """SGLang's own relay between overlapped rounds."""
        from sglang.srt.managers.overlap_utils import FutureMap  # noqa: PLC0415  (SGLang imports it as late)

        return FutureMap(device, self, *args, **kwargs)

    def has_draft_kv(self) -> bool:
        """Drafts are written to the slots of the verify window: nothing besides it is reserved."""
        return False

    def handle_server_args(self, server_args: Any) -> None:
        """Check the server's settings against the configuration, and set what the round needs. Raises `SpecplugError`."""
        speculator = speculator_of(words_of(server_args), server_args.speculative_draft_model_path)
        speculator.required(OFFERED, "SGLang")  # raises for a drafter or policy that cannot be served
        check_settings(server_args)
        server_args.speculative_num_draft_tokens = speculator.max_nodes
        server_args.speculative_num_steps = speculator.max_tokens - 1 or 1
        server_args.speculative_eagle_topk = 1
        server_args.enable_mixed_chunk = False
        if server_args.device == "cpu" and server_args.attention_backend is None:
            server_args.attention_backend = CPU_BACKEND


def check_settings(server_args: Any) -> None:
    """Raise `UnsupportedError` for a server that cannot be served losslessly; the message says which setting and why."""
    for name, wanted, reason in _REFUSED:
        value = getattr(server_args, name, wanted)
        if value != wanted:
            flag = name.replace("_", "-")
            raise UnsupportedError(f"{ALGORITHM} does not serve --{flag} {value!r}: {reason}. Set it to {wanted!r}.")
    backend = server_args.attention_backend
    if server_args.device == "cpu" and backend not in (None, CPU_BACKEND):
        raise UnsupportedError(
            f"{ALGORITHM} on a CPU needs --attention-backend {CPU_BACKEND}, which it teaches tree masks; got {backend!r}."
        )
    if server_args.device == "cuda" and backend not in (None, *GPU_BACKENDS):
        raise UnsupportedError(
            f"{ALGORITHM} needs an attention backend that takes a tree mask and a list of slots: "
            f"{' or '.join(GPU_BACKENDS)}, not {backend!r}; set --attention-backend."
        )


class BrokenAlgorithm(SpecplugAlgorithm):
    """Stands in where set-up failed, so that a launch says why and not that the algorithm is unknown."""

    reason = ""

    def handle_server_args(self, server_args: Any) -> None:
        raise SpecplugError(f"{ALGORITHM} cannot be used: {self.reason}")


def register(reason: str | None = None) -> None:
    """Register SPECPLUG, or, with a `reason`, what says that it cannot be used."""
    from sglang.srt.speculative.spec_info import SpeculativeAlgorithm  # noqa: PLC0415  (imports this module's base)

    kind = SpecplugAlgorithm if reason is None else type("BrokenAlgorithm", (BrokenAlgorithm,), {"reason": reason})

    def worker(server_args: Any) -> type:
        from specplug_sglang.worker import SpecplugWorker  # noqa: PLC0415  (loads the scheduler's side of SGLang)

        return SpecplugWorker

    SpeculativeAlgorithm.register(ALGORITHM, supports_overlap=True, spec_class=kind)(worker)
