"""`specplug bench --all-drafters`: every drafter on three kinds of text, batch 1, taking turns with plain `generate`."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from specplug import OptionError, SpecplugError
from specplug.commands.plot import need_matplotlib
from specplug_hf.commands import comparison_report, comparison_result, report
from specplug_hf.commands.batches import PromptBatch
from specplug_hf.commands.cases import EqualityCheck, choose
from specplug_hf.commands.comparison_drafters import Absent, Resources, cast
from specplug_hf.commands.comparison_memory import MemoryWatch
from specplug_hf.commands.comparison_result import Kind
from specplug_hf.commands.comparison_texts import KINDS, Text, texts
from specplug_hf.commands.environment import environment
from specplug_hf.commands.equality import Difference
from specplug_hf.commands.measure import Sample, call, interleaved
from specplug_hf.commands.models import load
from specplug_hf.commands.options import BATCHES, CONTEXTS, ModelOptions
from specplug_hf.commands.setups import Contender, Option, plain

NEW_TOKENS, PROMPTS, RUNS = 128, 4, 3  # unless something else was asked for


class Comparison:
    """One invocation of the command."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        _check(arguments)
        self.arguments = arguments
        self.models = load(ModelOptions.of(arguments))
        self.context = (arguments.context or CONTEXTS)[0]
        self.new_tokens = arguments.new_tokens or NEW_TOKENS
        self.runs = arguments.repeats or RUNS
        if self.context + self.new_tokens > self.models.max_positions:
            raise OptionError(
                f"--context {self.context} and {self.new_tokens} new tokens exceed the model's positions."
            )
        self.absent: list[Absent] = []
        self.differences: list[Difference] = []
        self.memory: dict[tuple[str, str], int] = {}  # bytes by drafter and option

    def run(self) -> int:
        """Measure, print, write; 0, or 1 if an output differs by more than rounding explains."""
        about = environment(self.models)
        print(report.header(about))
        count = 2 * (self.arguments.prompts or PROMPTS)  # as many to choose on as to measure on
        chosen = texts(self.models, self.context, self.new_tokens, count, self.arguments.quiet)
        kinds = [Kind(name, chosen[name]) for name in KINDS]
        with tempfile.TemporaryDirectory(prefix="specplug-") as folder:
            resources = Resources(self.arguments.model is None, Path(folder))
            present, self.absent = cast(self.models, resources)
            present = self._rehearsed(present, kinds[0].texts[0])
            for kind in kinds:
                self._measure(kind, [plain(self.models), *present])
        found = comparison_result.lines([c.name for c in present], kinds, self.memory)
        title = f"batch 1, prompts of {self.context} tokens, {self.new_tokens} new tokens, {self.runs} runs each"
        print(f"\n{title}")
        comparison_report.show(found, self.absent, kinds)
        calls = sum(len(kind.samples) + len(kind.choosing) for kind in kinds)
        print("\n" + report.equality(calls, self.differences))
        if self.arguments.plot:
            comparison_report.draw(self.arguments.plot, f"{self.models.name}, {title}", found, self.absent, kinds)
        if self.arguments.json:
            listed = {"environment": about, "case": title, **comparison_result.as_dict(found, self.absent, kinds)}
            listed["differences"] = [difference.as_dict() for difference in self.differences]
            self.arguments.json.write_text(json.dumps(listed, indent=1) + "\n")
        return int(any(not difference.is_rounding for difference in self.differences))

    def _rehearsed(self, present: Sequence[Contender], text: Text) -> list[Contender]:
        """One untimed call of every option: those that can take part, and what each holds in memory."""
        able, batch = [], text.batch(self.models.target.device)
        for contender in tqdm(present, desc="rehearsing", disable=self.arguments.quiet or None, leave=False):
            try:
                for option in contender.options:
                    with MemoryWatch(self.models.target) as watch:
                        call(self.models, option, batch, self.new_tokens)
                    self.memory[contender.name, option.label] = watch.bytes
            except SpecplugError as error:
                self.absent.append(Absent(contender.name, str(error)))
            else:
                able.append(contender)
        return able

    def _measure(self, kind: Kind, everybody: Sequence[Contender]) -> None:
        """Choose everybody's option on some texts of `kind`, and measure on the others."""
        device = self.models.target.device
        undecided = [(c, option) for c in everybody for option in c.options if len(c.options) > 1]
        choose_on, measure_on = ([t.batch(device) for t in part] for part in (kind.chosen_on, kind.measured))
        total = len(undecided) * len(choose_on) + len(everybody) * len(measure_on) * self.runs
        check = EqualityCheck(self.models, self.new_tokens, self.differences)
        with tqdm(total=total, desc=kind.name, disable=self.arguments.quiet or None, leave=False) as bar:

            def observe(contender: Contender, batch: PromptBatch, sample: Sample, new: Tensor) -> None:
                check(contender, batch, sample, new)
                bar.set_postfix_str(f"{contender.name} {sample.rate:.0f} tokens/s")
                bar.update()

            def turns(
                runs: Sequence[tuple[Contender, Option]], batches: list[PromptBatch], repeats: int
            ) -> list[Sample]:
                return interleaved(self.models, runs, batches, self.new_tokens, repeats, observe) if runs else []

            kind.choosing = turns(undecided, choose_on, 1)
            choose(everybody, kind.choosing)
            kind.samples = turns([(c, c.option) for c in everybody], measure_on, self.runs)


def _check(arguments: argparse.Namespace) -> None:
    """Before minutes of work: what does not go together, and whether what it gives can be written."""
    for name in ("goals", "planner", "setups", "ragged", "overhead"):
        if getattr(arguments, name):
            raise OptionError(f"--all-drafters and --{name} do not go together: it compares drafters, at batch 1.")
    if tuple(arguments.batch or BATCHES) != BATCHES or len(arguments.context or CONTEXTS) != 1:
        raise OptionError(
            "--all-drafters compares at batch 1 and one length of prompt: leave --batch out, give one --context."
        )
    if arguments.plot:
        need_matplotlib()
    for path in (arguments.json, arguments.plot):
        if path is not None and not path.absolute().parent.is_dir():
            raise OptionError(f"Cannot write {path}: there is no folder {path.absolute().parent}.")
