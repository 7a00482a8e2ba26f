"""One training run: phases, optimisers, learning rate, a resumable state of safetensors and JSON."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import LlamaForCausalLM

from specplug_hf.training.checkpoint import load_state, save_state, saved_record
from specplug_hf.training.data import windows
from specplug_hf.training.hardware import precision

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
        saved = saved_record(folder)
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
        """The next windows `[b, length]` of the phase."""
        count, p = max(1, self.recipe.batch_tokens // length), self.progress
        batch = windows(self.data, length, p.drawn, count, self.recipe.seed * 101 + p.phase)
        p.drawn += count
        return batch

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
        record = {"layers": self.model.config.num_hidden_layers, "progress": asdict(self.progress)}
        save_state(self.folder, self.progress.step, self.model, self.optimizers, record)

    def _load(self, saved: dict[str, Any]) -> None:
        self.progress = replace(self.progress, **saved["progress"])
        load_state(self.folder, saved, self.model, self.optimizers)
