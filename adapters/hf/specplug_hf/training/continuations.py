"""Texts that a model itself writes from short prompts: what a draft has to predict."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm
from transformers import DynamicCache, PreTrainedModel

from specplug_hf.training.checkpoint import write_json
from specplug_hf.training.data import window_starts
from specplug_hf.training.hardware import precision


@dataclass(frozen=True, slots=True)
class Continuations:
    """How a model writes: rows at a time, prompt and new tokens of each, for some minutes or batches. Every other batch is drawn
    at `temperature`; 0: all are greedy."""

    rows: int = 48
    prompt: int = 160
    new: int = 160
    minutes: float = 0.0
    batches: int = 0
    temperature: float = 1.0


@torch.no_grad()
def extend(
    model: PreTrainedModel,
    ids: Tensor,
    new: int,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """`ids` `[B, T]` and `new` tokens more, `[B, T + new]`: greedy, or drawn at `temperature` with `generator`.

    Products are computed in `dtype`; None: the device's own (`precision`). The end token does not stop a row.
    """
    cache = DynamicCache(config=model.config)
    out, step = [ids], ids
    for _ in range(new):
        with precision(ids.device, dtype):
            logits = (
                model(input_ids=step, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1].float()
            )
        if generator is None:
            step = logits.argmax(-1, keepdim=True)
        else:
            step = torch.multinomial((logits / temperature).softmax(-1).cpu(), 1, generator=generator).to(ids.device)
        out.append(step)
    return torch.cat(out, dim=1)


def write_continuations(
    model: PreTrainedModel,
    data: Tensor,
    plan: Continuations,
    folder: Path,
    seed: int,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The model's own texts `[N, prompt + new]` from prompts of the stream `data` `[T]`, in turn greedy and drawn.

    Products are computed in `dtype`, as in `extend`. Each batch is kept in `folder`, so that an interrupted run goes on with the next.
    """
    folder.mkdir(parents=True, exist_ok=True)
    progress = folder / "continuations.json"
    state = json.loads(progress.read_text()) if progress.exists() else {"batches": 0, "seconds": 0.0}
    starts = window_starts(len(data), plan.prompt, seed)
    device = next(model.parameters()).device
    with tqdm(
        desc="continuations", unit="batch", total=plan.batches or None, initial=state["batches"], mininterval=5
    ) as bar:
        while state["batches"] < plan.batches if plan.batches else state["seconds"] < 60 * plan.minutes:
            begun, k = time.perf_counter(), state["batches"]
            chosen = starts[torch.arange(k * plan.rows, (k + 1) * plan.rows) % len(starts)]
            ids = torch.stack([data[s : s + plan.prompt] for s in chosen]).to(device)
            drawn = k % 2 and plan.temperature > 0
            generator = torch.Generator().manual_seed(seed * 1009 + k) if drawn else None
            written = extend(model, ids, plan.new, generator, dtype, plan.temperature)
            save_file({"ids": written.cpu()}, folder / f"continuations-{k}.safetensors")
            state = {"batches": k + 1, "seconds": state["seconds"] + time.perf_counter() - begun}
            write_json(progress, state)
            bar.update()
    return torch.cat([load_file(folder / f"continuations-{k}.safetensors")["ids"] for k in range(state["batches"])])
