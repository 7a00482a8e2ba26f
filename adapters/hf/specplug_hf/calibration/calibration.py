"""What `specplug calibrate` does: measure, fit, say how well, write the profile."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import platform
from collections.abc import Iterator
from typing import Any

import torch
import transformers
from tqdm import tqdm

from specplug import OptionError, __version__
from specplug.commands.plan_options import numbers, whole
from specplug.cost.fitted import FittedCost, features, fit, held_out
from specplug.cost.profile import Profile
from specplug.drafters import Drafter, ModelDraft, PromptLookup, SelfDraft
from specplug.kv_policies import Full, KVPolicy, Streaming
from specplug.specification import build
from specplug.speculator import BUDGETS
from specplug_hf.calibration import report
from specplug_hf.calibration.clock import Clock
from specplug_hf.calibration.grid import corners_first
from specplug_hf.calibration.survey import Survey
from specplug_hf.calibration.sweep import Sweep, Tell
from specplug_hf.calibration.texts import Folder
from specplug_hf.calibration.times import jobs
from specplug_hf.commands.batches import Prompts
from specplug_hf.commands.models import Models, load
from specplug_hf.commands.options import ModelOptions
from specplug_hf.identity import identity_of

TIMES_SHARE = 0.6  # of the time, for the grid; what it leaves is acceptance's too


class Calibration:
    """One invocation of the command."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        batches, self.contexts = numbers("--batch", arguments.batch), numbers("--context", arguments.context)
        self.cells = corners_first(batches, self.contexts)
        nodes = numbers("--nodes", arguments.nodes)
        policies = [build("kv_policies", text) for text in arguments.kv_policy or ()]
        if arguments.threads is not None:
            torch.set_num_threads(whole("--threads", arguments.threads))
        self.budget = whole("--budget-seconds", arguments.budget_seconds)
        if not arguments.out.expanduser().parent.is_dir():
            raise OptionError(f"--out {str(arguments.out)!r}: there is no such folder.")
        self.models = load(ModelOptions.of(arguments))
        prompts = Prompts(self.models, arguments.model is None)
        if arguments.prompts is not None:
            prompts = Folder(self.models, arguments.prompts)
        drafters = cast(self.models, policies)
        self.sweep = Sweep(self.models, prompts, drafters, jobs(drafters, nodes))
        self.survey = Survey(self.sweep, self.contexts)

    def run(self) -> int:
        """Measure, print, write; 0."""
        clock = Clock(self.budget)
        with self._progress(clock) as tell:
            tell("warming up")
            self.sweep.warm_up()
            self.sweep.run(self.cells, clock.part(TIMES_SHARE), tell)
            self.survey.run(clock, tell)
        if not self.sweep.samples:
            raise OptionError("Nothing was measured. " + "; ".join(self.sweep.left_out))
        profile = self._profile()
        print(report.times(self.sweep.samples))
        print("\n" + report.errors(profile))
        print("\n" + report.acceptance(profile, self.survey.where))
        left_out = self.sweep.left_out + self.survey.left_out
        print("".join(f"\nleft out: {line}" for line in left_out) or "\nnothing was left out")
        path = self.arguments.out.expanduser()
        path.write_text(profile.as_json() + "\n", encoding="utf-8")
        print(f"{clock.spent:.0f} s of {self.budget}; written to {path}: Speculator(profile={str(path)!r})")
        if self.arguments.json:
            everything = json.loads(profile.as_json()) | {"left_out": left_out, "seconds": clock.spent}
            self.arguments.json.write_text(json.dumps(everything, indent=1) + "\n", encoding="utf-8")
        return 0

    @contextlib.contextmanager
    def _progress(self, clock: Clock) -> Iterator[Tell]:
        """A bar of the seconds spent, with what is being measured."""
        form = "{l_bar}{bar}| {n:.0f}/{total:.0f} s{postfix}"
        quiet = self.arguments.quiet or None
        with tqdm(total=self.budget, desc="calibrating", bar_format=form, disable=quiet, leave=False) as bar:

            def tell(what: str) -> None:
                bar.set_postfix_str(what, refresh=False)
                bar.update(min(clock.spent, self.budget) - bar.n)
                bar.refresh()

            yield tell

    def _profile(self) -> Profile:
        """Everything measured, fitted. A drafter that runs no model costs no forward."""
        samples = [sample for listed in self.sweep.samples.values() for sample in listed]
        fitted = fit(samples)
        nothing = (0.0,) * len(features(samples[0].load))
        idle = {drafter.key: nothing for drafter in self.sweep.cast if not drafter.drafts_with_model}
        model, device, dtype = identity_of(self.models.target)
        return Profile(
            model, device, dtype,
            kernel="auto",
            cost=FittedCost({**fitted.coefficients, **idle}),
            samples=samples,
            errors=held_out(samples),
            acceptance=self.survey.seen,
            versions=versions(),
            measured=datetime.datetime.now(datetime.UTC).date().isoformat(),
        )  # fmt: skip


def cast(models: Models, policies: list[KVPolicy]) -> list[Drafter]:
    """Who drafts: the draft model with its whole cache and with each policy, prompt lookup, the target with each policy."""
    drafters: list[Drafter] = []
    if models.draft is not None:
        drafters += [ModelDraft(models.draft, policy) for policy in dict.fromkeys([Full(), *policies])]
    drafters.append(PromptLookup())
    policies = policies or [Streaming.within(budget) for budget in BUDGETS]
    return drafters + [SelfDraft(policy) for policy in policies if policy.budget is not None]


def versions() -> dict[str, Any]:
    """What a time depends on besides the code; `threads` of a CPU."""
    return {
        "specplug": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "threads": str(torch.get_num_threads()),
    }
