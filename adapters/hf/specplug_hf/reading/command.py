"""Running the survey for the command line."""

from __future__ import annotations

import argparse
import json

from tqdm import tqdm

from specplug.commands.plot import need_matplotlib
from specplug.errors import OptionError, unknown_name
from specplug_hf.commands.batches import Prompts
from specplug_hf.commands.models import Models, load
from specplug_hf.commands.options import ModelOptions
from specplug_hf.reading.picture import draw
from specplug_hf.reading.report import tables
from specplug_hf.reading.survey import Plan, policies_of, survey


def compare(arguments: argparse.Namespace) -> int:
    """Measure, print, write; 0."""
    if arguments.plot:
        need_matplotlib()
    plan = _plan(arguments)
    models = load(ModelOptions.of(arguments))
    prompts = Prompts(models, builtin=arguments.model is None)
    _check(plan, models, prompts)
    with tqdm(total=plan.runs, disable=arguments.quiet or None, leave=False) as bar:

        def step(name: str) -> None:
            bar.set_postfix_str(name)
            bar.update()

        found = survey(models, plan, prompts, step)
    title = f"{models.name}: the target drafts over {plan.budget} KV entries ({arguments.dtype}, {arguments.device})"
    print(f"{title}\n\n{tables(found, plan)}")
    if arguments.json:
        arguments.json.write_text(json.dumps(found.as_dict(), indent=1) + "\n", encoding="utf-8")
    if arguments.plot:
        draw(found, title, arguments.plot)
    return 0


def _plan(arguments: argparse.Namespace) -> Plan:
    """What is asked for; `UnknownNameError` for a policy that is not compared here."""
    names = [name.strip() for name in arguments.policies.split(",") if name.strip()]
    known = policies_of(arguments.budget)
    for name in names:
        if name not in known:
            raise unknown_name("policy of this comparison", name, known)
    return Plan(
        policies={name: known[name] for name in (names or known)},
        budget=arguments.budget,
        contexts=tuple(arguments.context),
        prompts=arguments.prompts,
        new_tokens=arguments.new_tokens,
        long_context=arguments.long_context,
        long_tokens=arguments.long_tokens,
        bin_tokens=arguments.bin_tokens,
        batch=arguments.batch,
    )


def _check(plan: Plan, models: Models, prompts: Prompts) -> None:
    """Raise `OptionError` for what the model or the texts cannot give."""
    longest = max(*plan.contexts, plan.long_context) + max(plan.new_tokens, plan.long_tokens)
    if longest > models.max_positions:
        raise OptionError(f"--context and tokens reach {longest}; the model takes {models.max_positions}.")
    if plan.prompts > prompts.count() // 2:  # the other half gives the needles
        raise OptionError(f"--prompts {plan.prompts}: there are {prompts.count() // 2} texts to measure on.")
