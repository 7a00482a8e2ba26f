"""The loop of every training here: steps with a learning rate that warms up and falls by a cosine, saved and resumed.

Whatever a step draws at random it draws from the generator that it is given, which step and seed alone decide: a training
that was interrupted ends with the same weights, bit for bit on one machine with as many threads.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from specplug.errors import OptionError
from specplug_hf.training.checkpoint import load_state, save_state, saved_record

# The losses of step number `step` (0 first), scalars: their sum is the step's, and each is differentiated when it comes.
StepLosses = Callable[[int, torch.Generator], Iterable[Tensor]]


@dataclass(frozen=True, slots=True)
class Plan:
    """How long and how fast: `steps`, of which the first `warmup` rise to the optimisers' own rates; then a cosine to `floor` of
    them. Gradients are cut to norm `clip`. A state is saved every `save_seconds` and at the end."""

    steps: int
    seed: int = 0
    warmup: int = 20
    floor: float = 0.02
    clip: float = 1.0
    save_seconds: float = 120.0

    def rate(self, step: int) -> float:
        """The factor on the learning rates at `step`."""
        fallen = 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return min(1.0, (step + 1) / max(1, self.warmup)) * (self.floor + (1 - self.floor) * fallen)


class Loop:
    """Trains `model` in place; `folder` holds the state that an interrupted run goes on from.

    The optimisers' learning rates, as given, are the peaks.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        losses: StepLosses,
        plan: Plan,
        folder: Path,
        title: str = "training",
    ) -> None:
        self.model, self.optimizers, self.losses = model, tuple(optimizers), losses
        self.plan, self.folder, self.title = plan, folder, title
        self.step, self.loss = 0, math.nan
        self._peaks = [[float(group["lr"]) for group in optimizer.param_groups] for optimizer in self.optimizers]
        record = saved_record(folder)
        if record is not None:
            load_state(folder, record, model, self.optimizers)
            self.step = int(record["step"])
            self.loss = math.nan if record["loss"] is None else float(record["loss"])

    def run(self, stop_after: int | None = None) -> None:
        """Train to the plan's end, or for `stop_after` steps; a state is saved when it returns."""
        saved_at = time.monotonic()
        last = self.plan.steps if stop_after is None else min(self.plan.steps, self.step + stop_after)
        begun = self.step
        self.model.train()
        with tqdm(total=self.plan.steps, initial=self.step, desc=self.title, unit="step", mininterval=2) as bar:
            while self.step < last:
                self._step()
                bar.set_postfix_str(f"loss {self.loss:.3f}", refresh=False)
                bar.update()
                if time.monotonic() - saved_at > self.plan.save_seconds:
                    self.save()
                    saved_at = time.monotonic()
        self.model.eval()
        if self.step > begun or saved_record(self.folder) is None:
            self.save()

    def _step(self) -> None:
        generator = torch.Generator().manual_seed((self.plan.seed * 1_000_003 + self.step) % 2**63)
        total = 0.0
        for loss in self.losses(self.step, generator):
            loss.backward()
            total += float(loss.detach())
        if not math.isfinite(total):
            raise OptionError(
                f"{self.title}: the loss of step {self.step} is {total}; the state saved before it is in {self.folder}. Train "
                "with a smaller learning rate."
            )
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.plan.clip)
        rate = self.plan.rate(self.step)
        for optimizer, peaks in zip(self.optimizers, self._peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step, self.loss = self.step + 1, total

    def save(self) -> None:
        """Write the state to `folder`."""
        record = {"step": self.step, "loss": self.loss if math.isfinite(self.loss) else None}
        save_state(self.folder, self.step, self.model, self.optimizers, record)
