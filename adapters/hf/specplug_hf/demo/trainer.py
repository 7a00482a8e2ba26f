"""One training run: phases, optimisers, learning rate, a resumable state of safetensors and JSON."""

from __future__ import annotations

import ctypes
import json
import math
import os
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm
from transformers import LlamaForCausalLM

from .corpus import window_starts
from .muon import Muon
from .resize import deepen
from .shapes import Shape

SAVE_EVERY_SECONDS = 240.0
# The loss of a micro-batch `[b, length]` of token ids: sum over its predictions.
LossFunction = Callable[[LlamaForCausalLM, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of a run, up to the fraction `until` of the budget: sequences of `length` tokens, `layers` deep."""

    until: float
    length: int
    layers: int


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a model is trained. The budget is in minutes, or in tokens where `tokens` is given."""

    phases: tuple[Phase, ...]
    minutes: float = 0.0
    tokens: int = 0
    batch_tokens: int = 4096
    micro_tokens: int = 2048
    matrix_rate: float = 0.02
    vector_rate: float = 3e-3
    weight_decay: float = 0.1
    decay_from: float = 0.4
    seed: int = 0
    dtype: torch.dtype | None = None  # that products are computed in; None: the device's own (`precision`)


@dataclass(slots=True)
class Progress:
    """Where a run stands: optimiser steps, tokens seen, seconds spent, phase, steps and windows taken in the phase."""

    step: int = 0
    seen: int = 0
    seconds: float = 0.0
    phase: int = 0
    drawn: int = 0
    loss: float = math.nan


def keep_memory() -> None:
    """Let glibc keep freed memory: handing activations back to the kernel each step costs a third of the speed."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            libc.mallopt(-4, 0)  # M_MMAP_MAX: no mmap for large blocks
            libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
            libc.mallopt(-2, 2**28)  # M_TOP_PAD


def precision(device: torch.device, dtype: torch.dtype | None = None) -> AbstractContextManager[object]:
    """Mixed precision: autocast to `dtype`, weights and moments in float32. None: bfloat16 on a GPU, and plain float32 on a
    CPU, where bfloat16 is emulated more often than not."""
    if dtype is None:
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype=dtype)


def next_token_loss(model: LlamaForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    """Cross entropy summed over the predictions of `ids` `[b, length]`."""
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")


class Trainer:
    """Trains one model on a token stream `[T]`, or on the rows of `[N, length]`.

    `folder` holds the state that an interrupted run goes on from.
    """

    def __init__(
        self,
        shape: Shape,
        recipe: Recipe,
        data: torch.Tensor,
        folder: Path,
        device: torch.device,
        loss: LossFunction = next_token_loss,
        start: LlamaForCausalLM | None = None,
    ) -> None:
        self.shape, self.recipe, self.data, self.folder, self.device, self.loss = (
            shape, recipe, data, folder, device, loss,
        )  # fmt: skip
        self.progress = Progress()
        torch.manual_seed(recipe.seed)
        vocab = int(start.config.vocab_size) if start is not None else shape.config().vocab_size
        saved = json.loads((folder / "state.json").read_text()) if (folder / "state.json").exists() else None
        layers = saved["layers"] if saved else recipe.phases[0].layers
        self.model = start if start is not None else LlamaForCausalLM(shape.config(layers, vocab))
        self.model.to(device).train()
        self._make_optimizers()
        if saved:
            self._load(saved)

    def _make_optimizers(self) -> None:
        hidden = [p for n, p in self.model.named_parameters() if p.ndim == 2 and "embed" not in n]
        rest = [p for n, p in self.model.named_parameters() if p.ndim != 2 or "embed" in n]
        r = self.recipe
        self.optimizers = [
            Muon(hidden, lr=r.matrix_rate, weight_decay=r.weight_decay),
            torch.optim.AdamW(rest, lr=r.vector_rate, betas=(0.9, 0.95), weight_decay=0.0),
        ]

    def done(self) -> float:
        """The fraction of the budget that is spent."""
        r, p = self.recipe, self.progress
        return p.seen / r.tokens if r.tokens else p.seconds / (60 * r.minutes)

    def _rate(self) -> float:
        """The factor on the peak learning rates: 40 steps of warm-up, constant, then linear to a fiftieth."""
        left = (1 - self.done()) / (1 - self.recipe.decay_from)
        return min(1.0, (self.progress.step + 1) / 40, max(0.02, left))

    def run(self, stop_after: int | None = None) -> LlamaForCausalLM:
        """Train until the budget is spent (or `stop_after` steps more); returns the model in eval mode."""
        saved_at = clock = time.perf_counter()
        last = None if stop_after is None else self.progress.step + stop_after
        with tqdm(total=100, bar_format="{desc} {percentage:5.1f}% [{elapsed}{postfix}]", mininterval=5) as bar:
            while self.done() < 1 and self.progress.step != last:
                self._enter_phase()
                self._step()
                now = time.perf_counter()
                self.progress.seconds += now - clock
                clock = now
                self._show(bar)
                if now - saved_at > SAVE_EVERY_SECONDS:
                    self.save()
                    saved_at = now
        self.save()
        return self.model.eval()

    def _enter_phase(self) -> None:
        phases, p = self.recipe.phases, self.progress
        while p.phase < len(phases) - 1 and self.done() >= phases[p.phase].until:
            p.phase, p.drawn = p.phase + 1, 0
        layers = phases[p.phase].layers
        if self.model.config.num_hidden_layers != layers:
            self.model = deepen(self.model, self.shape, layers).train()
            self._make_optimizers()

    def _batch(self, length: int) -> torch.Tensor:
        """The next windows `[b, length]` of the phase: passes over the data, each shuffled (a stream: shifted) anew."""
        count = max(1, self.recipe.batch_tokens // length)
        rows: list[torch.Tensor] = []
        p, in_rows = self.progress, self.data.ndim == 2
        per_pass = len(self.data) if in_rows else len(self.data) // length - 1
        for k in range(p.drawn, p.drawn + count):
            seed = (self.recipe.seed * 101 + p.phase) * 10007 + k // per_pass
            if in_rows:
                order = torch.randperm(per_pass, generator=torch.Generator().manual_seed(seed))
                rows.append(self.data[order[k % per_pass]])
            else:
                start = int(window_starts(len(self.data), length, seed)[k % per_pass])
                rows.append(self.data[start : start + length])
        p.drawn += count
        return torch.stack(rows)

    def _step(self) -> None:
        p, r = self.progress, self.recipe
        length = r.phases[p.phase].length
        batch = self._batch(length).to(self.device)
        predictions = batch.shape[0] * (length - 1)
        total = 0.0
        for part in batch.split(max(1, r.micro_tokens // length)):
            with precision(self.device, r.dtype):
                loss = self.loss(self.model, part) / predictions
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer, peak in zip(self.optimizers, (r.matrix_rate, r.vector_rate), strict=True):
            optimizer.param_groups[0]["lr"] = peak * self._rate()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        p.step, p.seen, p.loss = p.step + 1, p.seen + batch.numel(), total

    def _show(self, bar: tqdm[None]) -> None:
        p = self.progress
        bar.n = min(100.0, 100 * self.done())
        bar.set_description(f"step {p.step} phase {p.phase}", refresh=False)
        bar.set_postfix_str(f"loss {p.loss:.3f}, {p.seen / 1e6:.2f} M tokens, {p.seconds / 60:.1f} min", refresh=False)
        bar.update(0)

    def save(self) -> None:
        """Write weights, optimiser moments and progress to `folder`; a crash in between leaves the last state whole."""
        self.folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"model.{n}": p.detach().cpu().contiguous() for n, p in self.model.named_parameters()}
        for k, optimizer in enumerate(self.optimizers):
            for i, entry in optimizer.state_dict()["state"].items():
                tensors |= {f"optim.{k}.{i}.{n}": v.detach().cpu().contiguous() for n, v in entry.items()}
        name = f"state-{self.progress.step}.safetensors"
        save_file(tensors, self.folder / name)
        state = {"file": name, "layers": self.model.config.num_hidden_layers, "progress": asdict(self.progress)}
        (self.folder / "state.json.part").write_text(json.dumps(state, indent=1))
        os.replace(self.folder / "state.json.part", self.folder / "state.json")
        for old in self.folder.glob("state-*.safetensors"):
            if old.name != name:
                old.unlink()

    def _load(self, saved: dict[str, object]) -> None:
        self.progress = replace(self.progress, **saved["progress"])
        tensors = load_file(self.folder / str(saved["file"]))
        with torch.no_grad():
            for name, p in self.model.named_parameters():
                p.copy_(tensors[f"model.{name}"])
        for k, optimizer in enumerate(self.optimizers):
            state = optimizer.state_dict()
            for key, value in tensors.items():
                if key.startswith(f"optim.{k}."):
                    _, _, i, name = key.split(".")
                    state["state"].setdefault(int(i), {})[name] = value
            optimizer.load_state_dict(state)
