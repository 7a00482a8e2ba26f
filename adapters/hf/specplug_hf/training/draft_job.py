"""What `specplug train draft` does: both models, the data, the training, the figures before and after."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from specplug.errors import OptionError
from specplug_hf.commands.models import load_as_saved
from specplug_hf.commands.options import ModelOptions
from specplug_hf.training.checkpoint import claim
from specplug_hf.training.data import BUILTIN, Corpus, read_corpus, windows
from specplug_hf.training.draft import Mixture, distil
from specplug_hf.training.draft_acceptance import Acceptance, Trial
from specplug_hf.training.draft_divergences import divergence
from specplug_hf.training.draft_models import common_vocabulary, load_draft, save_draft
from specplug_hf.training.hardware import keep_memory
from specplug_hf.training.loop import Plan

STATE = "training"  # the folder in --out to resume from


class DraftJob:
    """One invocation of the command."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        if arguments.threads:
            torch.set_num_threads(arguments.threads)
        keep_memory()
        self.divergence = divergence(arguments.divergence, arguments.beta)
        prompt = arguments.length // 2
        own = (1 - arguments.on_policy) / 2 if arguments.target_text is None else arguments.target_text
        self.mixture = Mixture(arguments.on_policy, own, arguments.batch, prompt, arguments.length - prompt)
        if arguments.json is not None and not arguments.json.absolute().parent.is_dir():
            raise OptionError(f"Cannot write {arguments.json}: there is no folder {arguments.json.absolute().parent}.")

    def run(self) -> int:
        """Train, measure, print, write; 0."""
        a = self.arguments
        models = load_as_saved(ModelOptions(None if a.target == BUILTIN else a.target, None, a.dtype, a.device))
        target, tokenizer = models.target, models.tokenizer
        draft, dtype = load_draft(a.draft, target.device)
        vocab = common_vocabulary(a.draft, draft, target, tokenizer)
        self._check_positions(target, draft)
        corpus = read_corpus(a.data, tokenizer)
        self._check_sizes(corpus)
        claim(a.out / STATE, self._configuration(corpus), a.resume)
        prompts = windows(corpus.held_out, self.mixture.prompt, 0, a.prompts, a.seed)
        trial = Trial(target, prompts, self.mixture.new, vocab, a.seed)
        before = trial.acceptance(draft)
        plan = Plan(a.steps, a.seed)
        distil(target, draft, self.divergence, self.mixture, corpus.training, plan, a.lr, a.out / STATE, vocab)
        save_draft(draft, dtype, tokenizer, a.out)
        after = trial.acceptance(load_draft(str(a.out), target.device)[0])  # as it was written, rounding included
        self._show(before, after)
        if a.json is not None:
            self._write(a.json, before, after, corpus)
        return 0

    def _check_positions(self, *models: Any) -> None:
        for model in models:
            positions = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
            if positions and self.arguments.length > positions:
                raise OptionError(f"--length {self.arguments.length}: {model.name_or_path} has {positions} positions.")

    def _check_sizes(self, corpus: Corpus) -> None:
        if self.mixture.prompt < 1:
            raise OptionError(f"--length {self.arguments.length}: a text needs two tokens or more.")
        for what, tokens, length in (
            ("texts of --length", len(corpus.training), self.arguments.length),
            ("held-out prompts of half --length", len(corpus.held_out), self.mixture.prompt),
        ):
            if tokens < 2 * length:
                raise OptionError(
                    f"--data: {tokens} tokens are too few for {what} {self.arguments.length}; give more text."
                )

    def _configuration(self, corpus: Corpus) -> dict[str, Any]:
        """What a resumed training must have in common with the one it goes on with."""
        a = self.arguments
        names = (
            "target",
            "draft",
            "divergence",
            "beta",
            "on_policy",
            "steps",
            "lr",
            "length",
            "batch",
            "seed",
            "dtype",
        )
        return {
            "recipe": "draft",
            **{name: getattr(a, name) for name in names},
            "target_text": self.mixture.target_text,
            "data": corpus.digest,
        }

    def _show(self, before: Acceptance, after: Acceptance) -> None:
        a, mixture = self.arguments, self.mixture
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for name in ("", "before", "after"):
            table.add_column(name, justify="right" if name else "left", no_wrap=True)
        by_depth = enumerate(zip(before.by_depth, after.by_depth, strict=True), start=1)
        pairs = [(f"greedy, at depth {depth}", one, other) for depth, (one, other) in by_depth]
        pairs.append(("sampled, at temperature 1", before.expected, after.expected))
        pairs.append(("tokens a round, greedy chain of 4", before.tokens_a_round, after.tokens_a_round))
        for name, one, other in pairs:
            table.add_row(name, f"{one:.3f}", f"{other:.3f}")
        console = Console(width=100, highlight=False)
        console.print(
            f"acceptance on {a.prompts} held-out prompts of {mixture.prompt} tokens, {mixture.new} new; at a depth: of chains "
            "accepted so far"
        )
        console.print(table)
        console.print(
            f"The draft is in {a.out}: Speculator(drafter='model', draft_model={str(a.out)!r}).", markup=False
        )

    def _write(self, path: Path, before: Acceptance, after: Acceptance, corpus: Corpus) -> None:
        found = {"configuration": self._configuration(corpus), "before": before.as_dict(), "after": after.as_dict()}
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
