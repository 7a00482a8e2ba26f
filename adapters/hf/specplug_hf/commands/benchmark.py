"""What `specplug bench` does: cases, their tables, the goals, the verdict on equality."""

from __future__ import annotations

import argparse
import json
from typing import Any

from specplug import OptionError
from specplug_hf.commands import report
from specplug_hf.commands.batches import Prompts
from specplug_hf.commands.cases import Case, Result, Runner
from specplug_hf.commands.environment import environment
from specplug_hf.commands.goals import Goal, Outcome, goal_cases, outcomes, planner_cases
from specplug_hf.commands.models import load
from specplug_hf.commands.names import SETUPS
from specplug_hf.commands.options import BATCHES, CONTEXTS, ModelOptions
from specplug_hf.commands.overhead import Overhead, overhead
from specplug_hf.commands.setups import NEEDS_DRAFT, contenders


class Benchmark:
    """One invocation of the command."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.models = load(ModelOptions.of(arguments))
        self.runner = Runner(self.models, Prompts(self.models, arguments.model is None), arguments.quiet)
        self.results: list[Result] = []
        self.outcomes: list[Outcome] = []
        self.overheads: list[Overhead] = []

    def run(self) -> int:
        """Measure, print, write; 0, or 1 if an output differs by more than rounding explains."""
        print(report.header(environment(self.models)))
        for case, goals in self._cases():
            self._case(case, goals)
        if self.outcomes:
            print("\n" + report.goals(self.outcomes, self.overheads))
        found = [d for result in self.results for d in result.differences]
        print("\n" + report.equality(sum(len(r.samples) + len(r.choosing) for r in self.results), found))
        if self.arguments.json:
            self.arguments.json.write_text(json.dumps(self.as_dict(), indent=1) + "\n")
        return int(any(not d.is_rounding for d in found))

    def _case(self, case: Case, goals: tuple[Goal, ...]) -> None:
        result = self.runner.run(case)
        self.results.append(result)
        self.outcomes += outcomes(result, goals)
        print("\n" + report.case(result))
        if self.arguments.overhead or (self.arguments.goals and case.rows == 1):
            self._overhead(result)

    def _overhead(self, result: Result) -> None:
        """Of `model` if it took part, else of `lookup`."""
        name = next((n for n in ("model", "lookup", "self") if n in result.contenders), None)
        if name is None:
            raise OptionError("--overhead needs one of the set-ups model, lookup, self.")
        case, baseline = result.case, contenders(["none"], self.models)[0]
        batches = [self.runner.prompts.batch(case.context, case.rows, n, 1, case.ragged) for n in range(case.prompts)]
        measured = overhead(self.models, result.contenders[name], baseline, batches, case.new_tokens)
        self.overheads.append(measured)
        print("\n" + report.overhead(measured))

    def _cases(self) -> list[tuple[Case, tuple[Goal, ...]]]:
        given = self.arguments
        if given.goals or given.planner:
            if self.models.draft is None:
                raise OptionError("--goals and --planner need a draft: give --draft, or use the built-in pair.")
            sizes = given.new_tokens, given.prompts, given.repeats, given.max_context
            return planner_cases(*sizes, given.batch, given.context) if given.planner else goal_cases(*sizes)
        names = tuple(given.setups or [n for n in SETUPS if self.models.draft is not None or n not in NEEDS_DRAFT])
        sizes = [(rows, context) for rows in given.batch or BATCHES for context in given.context or CONTEXTS]
        new, prompts, repeats = given.new_tokens or 128, given.prompts or 4, given.repeats or 1
        for _, context in sizes:
            if context + new > self.models.max_positions:
                raise OptionError(f"--context {context} and {new} new tokens exceed the model's positions.")
        return [(Case(rows, context, new, names, given.ragged, prompts, repeats), ()) for rows, context in sizes]

    def as_dict(self) -> dict[str, Any]:
        """Everything, JSON-ready."""
        return {
            "environment": environment(self.models),
            "cases": [result.as_dict() for result in self.results],
            "goals": [outcome.as_dict() for outcome in self.outcomes],
            "overhead": [measured.as_dict() for measured in self.overheads],
        }
