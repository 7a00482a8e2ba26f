"""A case: batch, context, who takes part; choosing set-ups on one half of the prompts and measuring on the other."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from tqdm import tqdm

from specplug_hf.commands.batches import PromptBatch, Prompts
from specplug_hf.commands.equality import Difference, differences
from specplug_hf.commands.measure import Sample, call, interleaved
from specplug_hf.commands.models import Models
from specplug_hf.commands.setups import Contender, Option, contenders, plain
from specplug_hf.commands.summary import Row, by_contender, row


@dataclass(frozen=True, slots=True)
class Case:
    """What to measure. `prompts`: batches to measure on; half as many, at least one, to choose on.

    `turning`: the text is dictated, and predictable for its first half only.
    """

    rows: int
    context: int
    new_tokens: int
    names: tuple[str, ...]
    ragged: bool = False
    prompts: int = 4
    repeats: int = 1
    turning: bool = False

    @property
    def title(self) -> str:
        """For people."""
        shape = "ragged prompts up to " if self.ragged else "prompts of "
        turn = ", random from the half on" if self.turning else ""
        return f"batch {self.rows}, {shape}{self.context} tokens, {self.new_tokens} new tokens a row{turn}"


@dataclass(slots=True)
class Result:
    """What a case gave."""

    case: Case
    contenders: dict[str, Contender]
    samples: list[Sample] = field(default_factory=list)
    choosing: list[Sample] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)

    def rows(self) -> list[Row]:
        """One summary a contender."""
        return [row(samples) for samples in by_contender(self.samples).values()]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready: summaries, every sample, every difference."""
        return {
            "case": self.case.title,
            "rows": self.case.rows,
            "context": self.case.context,
            "new_tokens": self.case.new_tokens,
            "ragged": self.case.ragged,
            "turning": self.case.turning,
            "summary": [line.as_dict() for line in self.rows()],
            "samples": [sample.as_dict() for sample in self.samples],
            "choosing": [sample.as_dict() for sample in self.choosing],
            "differences": [d.as_dict() for d in self.differences],
        }


class Runner:
    """Runs cases on one set of models; every output is compared with plain's on the way."""

    def __init__(self, models: Models, prompts: Prompts, quiet: bool = False) -> None:
        self.models, self.prompts, self.quiet = models, prompts, quiet

    def run(self, case: Case) -> Result:
        """Warm up, choose, measure."""
        taking_part = [c for c in contenders(list(case.names), self.models) if c.fits(case.rows, case.context)]
        result = Result(case, {c.name: c for c in taking_part})
        choose_on = self._batches(case, half=0, count=max(1, case.prompts // 2))
        measure_on = self._batches(case, half=1, count=case.prompts)
        learning = [(c, o) for c in taking_part for o in c.options if len(c.options) > 1 or c.learns]
        total = len(learning) * len(choose_on) + len(taking_part) * len(measure_on) * case.repeats
        check = EqualityCheck(self.models, case.new_tokens, result.differences)
        with tqdm(total=total, desc=f"B{case.rows} {case.context}", disable=self.quiet or None, leave=False) as bar:

            def observe(contender: Contender, batch: PromptBatch, sample: Sample, new: Tensor) -> None:
                check(contender, batch, sample, new)
                bar.set_postfix_str(f"{contender.name} {sample.rate:.0f} tokens/s")
                bar.update()

            self._warm_up(taking_part)
            result.choosing = (
                interleaved(self.models, learning, choose_on, case.new_tokens, 1, observe) if learning else []
            )
            choose(taking_part, result.choosing)
            runs = [(c, c.option) for c in taking_part]
            result.samples = interleaved(self.models, runs, measure_on, case.new_tokens, case.repeats, observe)
        return result

    def _batches(self, case: Case, half: int, count: int) -> list[PromptBatch]:
        batches = [self.prompts.batch(case.context, case.rows, number, half, case.ragged) for number in range(count)]
        if not case.turning:
            return batches
        vocab = self.models.target.config.get_text_config().vocab_size
        return [b.turning(case.new_tokens, vocab, 2 * number + half) for number, b in enumerate(batches)]

    def _warm_up(self, taking_part: Sequence[Contender]) -> None:
        """Short calls, so that nobody's first one is timed. Those that learn are not shown anything this short."""
        batch = self.prompts.batch(32, 1, 0, half=0)
        for contender in taking_part:
            if not contender.learns:
                call(self.models, contender.option, batch, 8)


class EqualityCheck:
    """Compares every output with plain's, which runs once for each batch it has not seen."""

    def __init__(self, models: Models, new_tokens: int, found: list[Difference]) -> None:
        self._models, self._new_tokens, self._found = models, new_tokens, found
        self._expected: dict[int, tuple[PromptBatch, Tensor]] = {}

    def __call__(self, contender: Contender, batch: PromptBatch, sample: Sample, new: Tensor) -> None:
        if id(batch) not in self._expected:
            mine = contender.name == "plain"
            self._expected[id(batch)] = (batch, new if mine else self._plain(batch))
        expected = self._expected[id(batch)][1]
        name = f"{contender.name} ({sample.option})"
        self._found.extend(differences(self._models, name, batch, expected, new))

    def _plain(self, batch: PromptBatch) -> Tensor:
        option: Option = plain(self._models).option
        return call(self._models, option, batch, self._new_tokens)[:, batch.input_ids.shape[1] :]


def choose(taking_part: Sequence[Contender], samples: Sequence[Sample]) -> None:
    """Give every contender with several options the one with the best median rate."""
    for contender in taking_part:
        if len(contender.options) < 2:
            continue
        rates = {
            option.label: [s.rate for s in samples if (s.contender, s.option) == (contender.name, option.label)]
            for option in contender.options
        }
        contender.chosen = max(contender.options, key=lambda o: statistics.median(rates[o.label] or [0.0]))
