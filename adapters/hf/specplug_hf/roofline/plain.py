"""Steps of transformers' own `generate`, as shipped: its cache, its attention, its loop."""

from __future__ import annotations

from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, StoppingCriteria, StoppingCriteriaList

from specplug_hf.calibration.clock import Clock
from specplug_hf.roofline.bandwidth import wait
from specplug_hf.roofline.prompts import CachedPrompt

WARM = 2  # steps that are not timed
STEPS = 16


class StepClock(StoppingCriteria):
    """Notes when each step ends, its device waited for (which `generate` itself does for the verdict), and ends the call in
    time."""

    def __init__(self, steps: int, clock: Clock) -> None:
        self.steps, self.clock, self.marks = steps, clock, list[float]()

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        wait(input_ids.device)
        self.marks.append(perf_counter())
        enough = len(self.marks) > WARM + self.steps or (self.clock.over and len(self.marks) > WARM + 1)
        return torch.full((input_ids.shape[0],), enough, device=input_ids.device)

    @property
    def seconds(self) -> list[float]:
        """Of every step behind the first `WARM`, from one end to the next."""
        return [end - start for start, end in zip(self.marks[WARM:], self.marks[WARM + 1 :], strict=False)]


def plain_steps(model: PreTrainedModel, prompt: CachedPrompt, clock: Clock, steps: int = STEPS) -> list[float]:
    """Seconds of each of up to `steps` steps behind `prompt`, whose cache grows with them."""
    watch = StepClock(steps, clock)
    model.generate(
        **prompt.inputs(), stopping_criteria=StoppingCriteriaList([watch]), max_new_tokens=WARM + steps + 1,
        do_sample=False,
    )  # fmt: skip
    return watch.seconds
