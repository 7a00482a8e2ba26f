"""Distilling a draft from its target (DistillSpec, Zhou et al., arXiv 2310.08461).

At every step both models answer at the places of some texts, and the draft moves towards the target's law. The texts are, by
chance: what the draft itself writes from prompts of the data (on-policy: where it stands when it drafts), what the target
wrote from such prompts, or the data as they are. Of written texts the prompt is not learnt.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from specplug.errors import OptionError
from specplug_hf.training.continuations import Continuations, extend, write_continuations
from specplug_hf.training.data import windows
from specplug_hf.training.draft_divergences import Divergence
from specplug_hf.training.laws import laws
from specplug_hf.training.loop import Loop, Plan

PASSES = 2  # over the target's own texts
MOST_LOGITS = 1 << 25  # of either model at a time: 128 MB in float32


class Source(Enum):
    """Where a step's texts come from."""

    DRAFT = auto()
    TARGET = auto()
    DATA = auto()


@dataclass(frozen=True, slots=True)
class Mixture:
    """Texts of the step: the shares that the draft and the target write; the rest is data as it is.

    `rows` texts of `prompt` tokens, and `new` more.
    """

    on_policy: float
    target_text: float
    rows: int
    prompt: int
    new: int

    def __post_init__(self) -> None:
        if min(self.on_policy, self.target_text) < 0 or self.on_policy + self.target_text > 1:
            raise OptionError(
                f"--on-policy {self.on_policy:g} and --target-text {self.target_text:g} are shares of the texts: from 0 on, and "
                "no more than 1 together."
            )

    def source(self, generator: torch.Generator) -> Source:
        """Of one step."""
        number = float(torch.rand((), generator=generator))
        if number < self.on_policy:
            return Source.DRAFT
        return Source.TARGET if number < self.on_policy + self.target_text else Source.DATA

    def written(self, steps: int) -> Continuations:
        """How much the target writes for `steps` steps; every other batch greedily."""
        batches = math.ceil(steps * self.target_text / PASSES)
        return Continuations(rows=self.rows, prompt=self.prompt, new=self.new, batches=batches)


class Distillation:
    """The losses of the steps. `data` [T] int64: the stream to learn from; `vocab`: tokens that both models know."""

    def __init__(
        self,
        target: PreTrainedModel,
        draft: PreTrainedModel,
        divergence: Divergence,
        mixture: Mixture,
        data: Tensor,
        written: Tensor | None,
        vocab: int,
        seed: int,
    ) -> None:
        self.target, self.draft, self.divergence, self.mixture = target, draft, divergence, mixture
        self.data, self.written, self.vocab, self.seed = data, written, vocab, seed

    def losses(self, step: int, generator: torch.Generator) -> Iterator[Tensor]:
        """Mean divergence of step `step`, in parts that are to be summed."""
        self.draft.eval()  # no dropout: the draft is to agree as it will draft
        ids, last = self._texts(step, generator)
        rows = max(1, MOST_LOGITS // (last * self.vocab))
        for part in ids.split(rows):
            with torch.no_grad():
                wanted = laws(self.target, part.to(self.target.device), last, self.vocab).to(part.device)
            got = laws(self.draft, part, last, self.vocab)
            yield self.divergence(wanted, got).sum() / (len(ids) * last)

    def _texts(self, step: int, generator: torch.Generator) -> tuple[Tensor, int]:
        """Texts [rows, prompt + new] on the draft's device, and how many of the last tokens are learnt."""
        mixture, device = self.mixture, self.draft.device
        source, first = mixture.source(generator), step * mixture.rows
        if source is Source.TARGET and self.written is not None:
            return windows(self.written, self.written.shape[1], first, mixture.rows, self.seed).to(device), mixture.new
        if source is Source.DRAFT:
            prompts = windows(self.data, mixture.prompt, first, mixture.rows, self.seed).to(device)
            return extend(self.draft, prompts, mixture.new, generator), mixture.new
        length = mixture.prompt + mixture.new
        return windows(self.data, length, first, mixture.rows, self.seed).to(device), length - 1


def distil(
    target: PreTrainedModel,
    draft: PreTrainedModel,
    divergence: Divergence,
    mixture: Mixture,
    data: Tensor,
    plan: Plan,
    rate: float,
    folder: Path,
    vocab: int,
    stop_after: int | None = None,
) -> None:
    """Train `draft` (float32) in place, for `plan` at the learning rate `rate`; `folder` has the state to go on from.

    `stop_after`: only so many steps now.
    """
    texts = mixture.written(plan.steps)
    written = None
    if texts.batches:
        written = write_continuations(target, data, texts, folder / "target-texts", plan.seed)
    recipe = Distillation(target, draft, divergence, mixture, data, written, vocab, plan.seed)
    optimizer = torch.optim.AdamW(draft.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.0)
    Loop(draft, [optimizer], recipe.losses, plan, folder, "distilling").run(stop_after)
