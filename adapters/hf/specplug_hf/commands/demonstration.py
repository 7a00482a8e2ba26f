"""What `specplug demo` does: a text written twice before your eyes, then the table of set-ups."""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from specplug import Speculator
from specplug_hf.commands.batches import PromptBatch, Prompts
from specplug_hf.commands.equality import Difference, differences
from specplug_hf.commands.measure import Sample, call, timed
from specplug_hf.commands.models import Models, load
from specplug_hf.commands.options import ModelOptions
from specplug_hf.commands.setups import OURS, Contender, Option, plain
from specplug_hf.commands.show import show_plain, show_speculation
from specplug_hf.commands.table import table

LONG_CONTEXT, LONG_ROWS, LONG_NEW = 8192, 4, 32


@dataclass(frozen=True, slots=True)
class SetUp:
    """One line of the table."""

    what: str
    contender: Contender
    rows: int = 1
    context: int = 256
    new_tokens: int = 160
    repeats: int = 3


@dataclass(frozen=True, slots=True)
class Line:
    """What one set-up gave, beside plain `generate` on the same prompts."""

    setup: SetUp
    plain_rate: float
    rate: float
    ratio: float
    accepted_length: float
    differences: tuple[Difference, ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "setup": self.setup.what,
            "batch": self.setup.rows,
            "context": self.setup.context,
            "new_tokens": self.setup.new_tokens,
            "plain_tokens_per_second": self.plain_rate,
            "specplug_tokens_per_second": self.rate,
            "ratio": self.ratio,
            "accepted_length": self.accepted_length,
            "identical": not self.differences,
            "differences": [d.as_dict() for d in self.differences],
        }


class Demonstration:
    """One invocation of the command."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.models = load(ModelOptions.of(arguments))
        self.prompts = Prompts(self.models, arguments.model is None)

    def run(self) -> int:
        """Show, measure, print, write; 0, or 1 if an output differs."""
        setups = ready(self.models, self.arguments.max_new_tokens, self.arguments.short)
        call(self.models, plain(self.models).option, self.prompts.batch(32, 1, 0, half=1), 4)
        same = True
        if not self.arguments.no_stream:
            same = self._show(setups[0])
        lines = [
            self._measure(setup) for setup in tqdm(setups, desc="measuring", unit="set-up", leave=False, disable=None)
        ]
        print(_table(lines))
        for difference in [d for line in lines for d in line.differences]:
            print(difference)
        same = same and not any(line.differences for line in lines)
        print("Every output is identical to plain generate." if same else "Outputs DIFFER from plain generate.")
        if self.arguments.json:
            self.arguments.json.write_text(json.dumps(self._as_dict(lines, same), indent=1) + "\n")
        return 0 if same else 1

    def _as_dict(self, lines: list[Line], same: bool) -> dict[str, Any]:
        return {"model": self.models.name, "identical": same, "setups": [line.as_dict() for line in lines]}

    def _show(self, setup: SetUp) -> bool:
        batch = self._batch(setup)
        expected = show_plain(self.models, batch, setup.new_tokens)
        got = show_speculation(self.models, setup.contender.option, setup.what, batch, setup.new_tokens)
        same = expected.shape == got.shape and bool((expected == got).all())
        print(f"The two texts are {'identical' if same else 'DIFFERENT'}.\n")
        return same

    def _batch(self, setup: SetUp) -> PromptBatch:
        if self.arguments.prompt is not None and setup.rows == 1:
            return self.prompts.encode(self.arguments.prompt)
        return self.prompts.batch(setup.context, setup.rows, 0, half=1)

    def _measure(self, setup: SetUp) -> Line:
        """Plain and ours in turns on the same prompt."""
        baseline, ours = plain(self.models), setup.contender
        batch = self._batch(setup)
        plain_samples: list[Sample] = []
        samples: list[Sample] = []
        found: list[Difference] = []
        for repeat in range(setup.repeats):
            sample, expected = timed(self.models, baseline, baseline.option, batch, setup.new_tokens, (0, repeat))
            plain_samples.append(sample)
            sample, new = timed(self.models, ours, ours.option, batch, setup.new_tokens, (0, repeat))
            samples.append(sample)
            found = found or differences(self.models, setup.what, batch, expected, new)
        ratios = [s.rate / p.rate for s, p in zip(samples, plain_samples, strict=True)]
        stats = samples[-1].stats
        return Line(
            setup=setup,
            plain_rate=statistics.median(s.rate for s in plain_samples),
            rate=statistics.median(s.rate for s in samples),
            ratio=statistics.median(ratios),
            accepted_length=stats.accepted_length if stats else 0.0,
            differences=tuple(found),
        )


def ready(models: Models, new_tokens: int, short: bool) -> list[SetUp]:
    """The set-ups that these models allow; the first is the one that is shown."""
    draft = models.draft
    setups = []
    if draft is not None:
        tree = Speculator(drafter="model", draft_model=draft, tree="sequoia:size=8,depth=4", controller="fixed")
        setups.append(SetUp("draft model, token tree", _contender(tree), new_tokens=new_tokens))
    lookup = Speculator(drafter="prompt_lookup", tree="chain:length=5", controller="fixed")
    setups.append(SetUp("prompt lookup", _contender(lookup), new_tokens=new_tokens))
    setups.append(SetUp("auto", _contender(Speculator(draft_model=draft)), new_tokens=new_tokens))
    if not short and models.max_positions >= LONG_CONTEXT + LONG_NEW:
        streaming = Speculator(
            drafter="self", kv_policy="streaming:sink=4,window=508", tree="chain:length=3", controller="fixed"
        )
        setups.append(SetUp("self-speculation", _contender(streaming), LONG_ROWS, LONG_CONTEXT, LONG_NEW, repeats=1))
    return setups


def _contender(speculator: Speculator) -> Contender:
    return Contender("specplug", OURS, [Option("demo", {"assistant": speculator})])


def _table(lines: list[Line]) -> str:
    rows = [
        [
            line.setup.what,
            str(line.setup.rows),
            str(line.setup.context),
            f"{line.plain_rate:.0f}",
            f"{line.rate:.0f}",
            f"{line.ratio:.2f}x",
            f"{line.accepted_length:.2f}",
            "identical" if not line.differences else "DIFFERENT",
        ]
        for line in lines
    ]
    names = ["set-up", "batch", "prompt", "plain tokens/s", "specplug tokens/s", "faster", "accepted length", "output"]
    return table(names, rows, right=(1, 2, 3, 4, 5, 6))
