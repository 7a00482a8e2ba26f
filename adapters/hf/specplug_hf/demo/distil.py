"""Distillation: the draft learns the target's distribution, on the corpus and on what the target itself writes."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm
from transformers import DynamicCache, LlamaForCausalLM

from .corpus import window_starts
from .trainer import LossFunction, precision

HARD_WEIGHT = 0.3


@dataclass(frozen=True, slots=True)
class Continuations:
    """How the target writes: rows at a time, prompt and new tokens of each, for some minutes or batches."""

    rows: int = 48
    prompt: int = 160
    new: int = 160
    minutes: float = 0.0
    batches: int = 0


def distillation_loss(
    teacher: LlamaForCausalLM, hard_weight: float = HARD_WEIGHT, remembered_rows: int = 0
) -> LossFunction:
    """KL(teacher || student), mixed with the cross entropy to the teacher's greedy token.

    The teacher's answers to the first `remembered_rows` different rows are kept (fp16, 2 MB a row of 320 tokens):
    it costs three times what the student does.
    """
    memory: dict[bytes, torch.Tensor] = {}

    def ask(ids: torch.Tensor) -> torch.Tensor:
        keys = [row.cpu().numpy().tobytes() for row in ids]
        if all(key in memory for key in keys):
            return torch.stack([memory[key] for key in keys]).float()
        with torch.no_grad():
            answers = teacher(input_ids=ids, use_cache=False).logits[:, :-1].float().log_softmax(-1)
        for key, answer in zip(keys, answers, strict=True):
            if len(memory) < remembered_rows:
                memory[key] = answer.half()
        return answers

    def loss(student: LlamaForCausalLM, ids: torch.Tensor) -> torch.Tensor:
        wanted = ask(ids).flatten(0, 1)
        got = student(input_ids=ids, use_cache=False).logits[:, :-1].float().log_softmax(-1).flatten(0, 1)
        soft = (wanted.exp() * (wanted - got)).sum()
        hard = torch.nn.functional.nll_loss(got, wanted.argmax(-1), reduction="sum")
        return (1 - hard_weight) * soft + hard_weight * hard

    return loss


@torch.no_grad()
def extend(
    model: LlamaForCausalLM, ids: torch.Tensor, new: int, generator: torch.Generator | None = None
) -> torch.Tensor:
    """`ids` `[B, T]` and `new` tokens more, `[B, T + new]`: greedy, or drawn at temperature 1 with `generator`.

    The end token does not stop a row.
    """
    cache = DynamicCache(config=model.config)
    out, step = [ids], ids
    for _ in range(new):
        with precision(ids.device):
            logits = (
                model(input_ids=step, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1].float()
            )
        if generator is None:
            step = logits.argmax(-1, keepdim=True)
        else:
            step = torch.multinomial(logits.softmax(-1).cpu(), 1, generator=generator).to(ids.device)
        out.append(step)
    return torch.cat(out, dim=1)


def write_continuations(
    model: LlamaForCausalLM, data: torch.Tensor, plan: Continuations, folder: Path, seed: int
) -> torch.Tensor:
    """The target's own texts `[N, prompt + new]` from prompts of the stream `data` `[T]`, in turn greedy and drawn.

    Each batch is kept in `folder`, so that an interrupted run goes on with the next.
    """
    folder.mkdir(parents=True, exist_ok=True)
    progress = folder / "continuations.json"
    state = json.loads(progress.read_text()) if progress.exists() else {"batches": 0, "seconds": 0.0}
    starts = window_starts(len(data), plan.prompt, seed)
    device = next(model.parameters()).device
    with tqdm(desc="continuations", unit="batch", initial=state["batches"], mininterval=5) as bar:
        while state["batches"] < plan.batches if plan.batches else state["seconds"] < 60 * plan.minutes:
            begun, k = time.perf_counter(), state["batches"]
            chosen = starts[torch.arange(k * plan.rows, (k + 1) * plan.rows) % len(starts)]
            ids = torch.stack([data[s : s + plan.prompt] for s in chosen]).to(device)
            generator = torch.Generator().manual_seed(seed * 1009 + k) if k % 2 else None
            save_file({"ids": extend(model, ids, plan.new, generator).cpu()}, folder / f"continuations-{k}.safetensors")
            state = {"batches": k + 1, "seconds": state["seconds"] + time.perf_counter() - begun}
            progress.write_text(json.dumps(state))
            bar.update()
    return torch.cat([load_file(folder / f"continuations-{k}.safetensors")["ids"] for k in range(state["batches"])])
