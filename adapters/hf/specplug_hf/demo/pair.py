"""The pair that ships with the package: a target, a draft, their tokenizer."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoTokenizer, GenerationConfig, LlamaForCausalLM, PreTrainedTokenizerFast

FOLDER = Path(__file__).parent
TARGET_FOLDER = FOLDER / "target"
DRAFT_FOLDER = FOLDER / "draft"
HEADS_FOLDER = FOLDER / "mlp_speculator"  # for the target: Speculator(drafter=f"mlp_speculator:path={HEADS_FOLDER}")
LAYERS_FILE = (
    FOLDER / "layer_skip.json"
)  # of the target, found by search: Speculator(drafter=f"layer_skip:layers={LAYERS_FILE}")


def load_model(
    folder: Path, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> LlamaForCausalLM:
    """The model saved in `folder` (a local path, no network), in eval mode; greedy by default, id 0 ends and pads."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True)
    model.generation_config = GenerationConfig(bos_token_id=0, eos_token_id=0, pad_token_id=0, do_sample=False)
    return model.to(device).eval()


def load_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer that target and draft share."""
    return AutoTokenizer.from_pretrained(TARGET_FOLDER, local_files_only=True)


def load_pair(
    dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> tuple[LlamaForCausalLM, LlamaForCausalLM, PreTrainedTokenizerFast]:
    """`(target, draft, tokenizer)` from the package's own folder. The weights are fp16 on disk, `dtype` in memory."""
    return load_model(TARGET_FOLDER, dtype, device), load_model(DRAFT_FOLDER, dtype, device), load_tokenizer()
