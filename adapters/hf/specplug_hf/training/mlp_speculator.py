"""Training heads for a target as IBM's were (arXiv 2404.19124, section 4): on text, then on what the target itself writes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from specplug.errors import OptionError
from specplug.mlp import Heads, HeadsConfig, save_heads
from specplug_hf.training.continuations import Continuations, write_continuations
from specplug_hf.training.data import Corpus, windows
from specplug_hf.training.heads import Stage, acceptance_by_head
from specplug_hf.training.loop import Loop, Plan

STATE_FOLDER = "training"  # in the folder of the result: what a resumed run needs, and nothing else does
TESTED_PROMPTS, TESTED_TOKENS = 32, 96


@dataclass(frozen=True, slots=True)
class HeadsRecipe:
    """How heads are trained. Rates are AdamW's; a step of stage 1 has `batch` windows of `length` tokens, of stage 2 `batch` of the
    target's `texts`, each a prompt of `prompt` tokens and `new` that the target wrote, on which alone the heads are trained. In
    turn the texts are greedy and drawn at `temperature`; 0: all are greedy.

    `soft`, which is not the authors': the heads learn the target's whole law at each place, not the token that stands there.
    """

    steps: int = 1000
    stage2_steps: int = 1000
    batch: int = 8
    length: int = 512
    rate: float = 1e-3
    stage2_rate: float = 5e-4
    texts: int = 1536
    prompt: int = 64
    new: int = 256
    rows: int = 48  # texts written at once
    temperature: float = 1.0
    soft: bool = False
    seed: int = 0

    def check(self, corpus: Corpus, heads: int, positions: int) -> None:
        """Raise `OptionError` if there is too little text, or if a window is too short for `heads` or longer than `positions`."""
        for option, length in (("--length", self.length), ("--prompt plus --new", self.prompt + self.new)):
            if length > positions:
                raise OptionError(f"{option}: {length} tokens, but the target takes {positions}.")
        for option, length in (("--length", self.length), ("--new", self.new)):
            if length < heads + 2:
                raise OptionError(f"{option}: {length} tokens are too few for {heads} heads; give {heads + 2} or more.")
        needs = {"training": 2 * max(self.length, self.prompt), "held_out": 2 * self.prompt}
        for name, least in needs.items():
            found = len(getattr(corpus, name))
            if found < least:
                raise OptionError(
                    f"--data: {found} tokens ({name.replace('_', ' ')}) are too few; {least} are needed. Give more text."
                )


@dataclass(frozen=True, slots=True)
class StageResult:
    """What came of a stage: the last step's loss, nats a head and token, and acceptance by head on held-out prompts. "start":
    of the heads that were given, without a loss."""

    name: str
    loss: float | None
    acceptance: list[float]


def train_heads(
    config: HeadsConfig,
    recipe: HeadsRecipe,
    target: PreTrainedModel,
    corpus: Corpus,
    out: Path,
    dtype: torch.dtype,
    start: Heads | None = None,
) -> list[StageResult]:
    """Train heads for `target`, write them to `out` in `dtype`, and return what came of each stage.

    `start`: float32 heads of `config` that stage 2 goes on from, in place; None: random ones, and stage 1 first. The state is
    in `out / "training"`; where there is one of the same arguments the training goes on from it.
    """
    target.requires_grad_(False)
    state = out / STATE_FOLDER
    heads = start or Heads(config)
    if start is None:
        heads.initialise(torch.Generator().manual_seed(recipe.seed))
    heads.requires_grad_(True).to(target.device)
    tested = _held_out_prompts(corpus, recipe)
    results: list[StageResult] = []

    def run(name: str, steps: int, rate: float, data: Tensor, length: int, first: int) -> None:
        stage = Stage(heads, target, data, recipe.batch, length, first, recipe.seed, recipe.soft)
        optimizer = torch.optim.AdamW(heads.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.01)
        loop = Loop(heads, [optimizer], stage, Plan(steps, recipe.seed), state / name.replace(" ", "-"), name)
        loop.run()
        shares = acceptance_by_head(heads, target, tested, TESTED_TOKENS)
        results.append(StageResult(name, loop.loss, shares))

    if start is None:
        run("stage 1", recipe.steps, recipe.rate, corpus.training, recipe.length, 0)
    else:
        results.append(StageResult("start", None, acceptance_by_head(heads, target, tested, TESTED_TOKENS)))
    batches = -(-recipe.texts // recipe.rows)
    plan = Continuations(recipe.rows, recipe.prompt, recipe.new, batches=batches, temperature=recipe.temperature)
    texts = write_continuations(target, corpus.training, plan, state / "texts", recipe.seed)
    run("stage 2", recipe.stage2_steps, recipe.stage2_rate, texts, texts.shape[1], recipe.prompt - 1)
    save_heads(heads, out, dtype)
    return results


def _held_out_prompts(corpus: Corpus, recipe: HeadsRecipe) -> Tensor:
    """Some prompts that nothing is trained on: [n, prompt]."""
    most = len(corpus.held_out) // recipe.prompt - 1
    return windows(corpus.held_out, recipe.prompt, 0, min(TESTED_PROMPTS, most), recipe.seed)
