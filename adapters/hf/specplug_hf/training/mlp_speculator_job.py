"""What `specplug train mlp-speculator` does: target, data, the two stages, what came of them."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import PretrainedConfig

from specplug.errors import OptionError
from specplug.mlp import Heads, HeadsConfig, check_hidden, read_config, read_heads
from specplug_hf.commands.models import DTYPES, load_as_saved
from specplug_hf.commands.options import ModelOptions
from specplug_hf.training.checkpoint import claim
from specplug_hf.training.data import BUILTIN, Corpus, read_corpus
from specplug_hf.training.hardware import keep_memory
from specplug_hf.training.heads import chain_length
from specplug_hf.training.mlp_speculator import STATE_FOLDER, TESTED_TOKENS, HeadsRecipe, StageResult, train_heads


class HeadsJob:
    """One invocation of the command."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        if arguments.threads:
            torch.set_num_threads(arguments.threads)
        keep_memory()
        if arguments.json is not None and not arguments.json.absolute().parent.is_dir():
            raise OptionError(f"Cannot write {arguments.json}: there is no folder {arguments.json.absolute().parent}.")
        names = ("steps", "stage2_steps", "batch", "length", "texts", "prompt", "new", "temperature", "seed")
        self.recipe = HeadsRecipe(
            rate=arguments.lr,
            stage2_rate=arguments.stage2_lr or arguments.lr / 2,
            soft=arguments.soft_labels,
            **{name: getattr(arguments, name) for name in names},
        )

    def run(self) -> int:
        """Train, measure, print, write; 0."""
        a = self.arguments
        models = load_as_saved(ModelOptions(None if a.target == BUILTIN else a.target, None, a.dtype, a.device))
        text = models.target.config.get_text_config(decoder=True)
        start = None if a.start is None else self._given(text)
        config = self._sizes(text) if start is None else start.config
        corpus = read_corpus(a.data, models.tokenizer)
        self.recipe.check(corpus, config.n_predict, models.max_positions)
        claim(a.out / STATE_FOLDER, self._configuration(config, corpus), a.resume)
        results = train_heads(config, self.recipe, models.target, corpus, a.out, DTYPES[a.weights], start)
        self._show(results)
        if a.json is not None:
            self._write(a.json, config, corpus, results)
        return 0

    def _sizes(self, text: PretrainedConfig) -> HeadsConfig:
        """Of new heads."""
        a = self.arguments
        return HeadsConfig(
            vocab_size=text.vocab_size,
            emb_dim=text.hidden_size,
            inner_dim=a.inner_dim or 0,
            n_predict=a.heads,
            top_k_tokens_per_head=tuple(a.top_k or (max(2, 5 - head) for head in range(a.heads))),
            tie_weights=a.tie_weights,
            scale_input=True,
        )

    def _given(self, text: PretrainedConfig) -> Heads:
        """The heads to go on from, whose sizes hold."""
        config = read_config(self.arguments.start)
        check_hidden(config, text.hidden_size)
        return read_heads(self.arguments.start, config, text.vocab_size, torch.device("cpu"), torch.float32)

    def _configuration(self, config: HeadsConfig, corpus: Corpus) -> dict[str, Any]:
        """What a resumed training must have in common with the one it goes on with."""
        a = self.arguments
        given = {"recipe": "mlp-speculator", "target": a.target, "dtype": a.dtype, "data": corpus.digest}
        given |= {} if a.start is None else {"start": str(a.start)}
        return given | config.as_json() | asdict(self.recipe)

    def _show(self, results: list[StageResult]) -> None:
        a, recipe = self.arguments, self.recipe
        table = Table(
            title=f"greedy acceptance by head on held-out prompts of {recipe.prompt} tokens, {TESTED_TOKENS} new", box=None,
            pad_edge=False, padding=(0, 2, 0, 0), title_justify="left",
        )  # fmt: skip
        heads = [f"head {head + 1}" for head in range(len(results[0].acceptance))]
        for name in ("", "loss", *heads, "tokens a round"):
            table.add_column(name, justify="right" if name else "left", no_wrap=True)
        for result in results:
            shares = [f"{share:.3f}" for share in result.acceptance]
            loss = "" if result.loss is None else f"{result.loss:.3f}"
            table.add_row(result.name, loss, *shares, f"{chain_length(result.acceptance):.2f}")
        console = Console(width=100, highlight=False)
        console.print(table)
        console.print(f"The heads are in {a.out}: Speculator(drafter='mlp_speculator:path={a.out}').", markup=False)

    def _write(self, path: Path, config: HeadsConfig, corpus: Corpus, results: list[StageResult]) -> None:
        stages = [asdict(result) | {"tokens_a_round": chain_length(result.acceptance)} for result in results]
        found = {"configuration": self._configuration(config, corpus), "stages": stages}
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
