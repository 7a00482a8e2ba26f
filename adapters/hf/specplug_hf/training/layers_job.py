"""What `specplug train layer-skip` does: model, prompts, the search, and what it found on prompts that it did not see."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from specplug.drafters.layer_skip import evenly_spread
from specplug.errors import OptionError
from specplug.host import SkippedLayers
from specplug_hf.calibration.clock import Clock
from specplug_hf.calibration.texts import Folder
from specplug_hf.commands.batches import Prompts
from specplug_hf.commands.models import load
from specplug_hf.commands.options import ModelOptions
from specplug_hf.identity import name_of
from specplug_hf.skipping import check_layers, num_layers
from specplug_hf.training.data import BUILTIN
from specplug_hf.training.layers_search import search
from specplug_hf.training.layers_trial import LayerTrial, Score, measured_shares


class LayersJob:
    """One invocation of the command."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        if arguments.threads:
            torch.set_num_threads(arguments.threads)
        if not arguments.out.expanduser().absolute().parent.is_dir():
            raise OptionError(f"--out {str(arguments.out)!r}: there is no such folder.")
        builtin = arguments.target == BUILTIN
        self.models = load(ModelOptions(None if builtin else arguments.target, None, arguments.dtype, arguments.device))
        self.prompts = Prompts(self.models, builtin)
        if arguments.prompts is not None:
            self.prompts = Folder(self.models, arguments.prompts)
        if self.prompts.count() < 2:
            raise OptionError(
                f"--prompts {arguments.prompts!r}: it takes two texts, one to search on, one to measure on."
            )
        if arguments.context + arguments.new > self.models.max_positions:
            raise OptionError(
                f"--context {arguments.context} and --new {arguments.new} go beyond the {self.models.max_positions} positions "
                "of the target."
            )
        self.layers = num_layers(self.models.target)
        self.start = evenly_spread(self.layers, arguments.skip)
        inner = frozenset(range(1, self.layers - 1))
        check_layers(self.models.target, SkippedLayers(inner, inner))

    def run(self) -> int:
        """Search, measure, print, write; 0."""
        model, a = self.models.target, self.arguments
        shown, hidden = (self._prompts(half) for half in (0, 1))
        shares = measured_shares(model, shown[:1])
        trial = LayerTrial(model, shown, a.new, shares)
        with self._progress() as goes_on:
            found, _ = search(trial.score, self.start, self.layers, a.seed, goes_on)
        trial = LayerTrial(model, hidden, a.new, shares)
        before, after = trial.score(self.start), trial.score(found)
        if after.speedup < before.speedup:  # what it learnt holds for its own prompts only
            found, after = self.start, before
        self._write(found, before, after)
        self._show(found, before, after)
        return 0

    def _prompts(self, half: int) -> torch.Tensor:
        a = self.arguments
        rows = min(a.rows, (self.prompts.count() + 1 - half) // 2)
        return self.prompts.batch(a.context, rows, 0, half).input_ids

    @contextmanager
    def _progress(self) -> Iterator[Any]:
        """Whether to look further: a bar of the choices looked at, with the best so far."""
        a = self.arguments
        clock = None if a.seconds is None else Clock(a.seconds)
        with tqdm(total=a.iterations, desc="searching", unit="choice", disable=a.quiet or None, leave=False) as bar:
            left = iter(range(a.iterations))

            def goes_on(best: Score) -> bool:
                bar.set_postfix_str(f"best {best.speedup:.2f} x", refresh=False)
                if (clock is not None and clock.over) or next(left, None) is None:
                    return False
                bar.update()
                return True

            yield goes_on

    def _write(self, found: SkippedLayers, before: Score, after: Score) -> None:
        a = self.arguments
        content = {
            "model": name_of(self.models.target),
            "attention": sorted(found.attention),
            "mlp": sorted(found.mlp),
            "before": before.as_dict(),
            "after": after.as_dict(),
            "search": {name: getattr(a, name) for name in ("skip", "iterations", "seconds", "context", "new", "seed")},
        }
        Path(a.out).expanduser().write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    def _show(self, found: SkippedLayers, before: Score, after: Score) -> None:
        table = Table(
            title="on prompts that the search did not see", box=None, pad_edge=False, padding=(0, 2, 0, 0),
            title_justify="left",
        )  # fmt: skip
        for name in ("left out", "attention", "mlp", "agreement", "time saved", "chain", "predicted speed-up"):
            table.add_column(name, justify="left" if name == "left out" else "right")
        for name, skipped, score in (("evenly spread", self.start, before), ("found", found, after)):
            layers = [" ".join(map(str, sorted(part))) or "none" for part in (skipped.attention, skipped.mlp)]
            shares = [f"{score.agreement:.0%}", f"{score.saved:.0%}", str(score.length), f"{score.speedup:.2f}"]
            table.add_row(name, *layers, *shares)
        console = Console(width=120, highlight=False)
        console.print(table)
        if after.speedup <= 1:
            console.print("No choice is predicted to be faster than plain decoding here.")
        out = self.arguments.out
        console.print(f"Written to {out}: Speculator(drafter='layer_skip:layers={out}').", markup=False, soft_wrap=True)
