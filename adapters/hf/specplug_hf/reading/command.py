"""Running the survey for the command line."""

from __future__ import annotations

import argparse
import json

from tqdm import tqdm

from specplug.commands.plot import need_matplotlib
from specplug.errors import OptionError, unknown_name
from specplug_hf.commands.batches import Prompts
from specplug_hf.commands.models import load
from specplug_hf.commands.options import ModelOptions
from specplug_hf.reading.report import draw, tables
from specplug_hf.reading.survey import Plan, policies_of, survey


def compare(arguments: argparse.Namespace) -> int:
    """Measure, print, write; 0."""
    if arguments.plot:
        need_matplotlib()
    names = [name.strip() for name in arguments.policies.split(",") if name.strip()]
    known = policies_of(arguments.budget, ())
    for name in names:
        if name not in known:
            raise unknown_name("policy of this comparison", name, known)
    plan = Plan(
        policies={name: known[name] for name in (names or known)},
        contexts=tuple(arguments.context),
        prompts=arguments.prompts,
        new_tokens=arguments.new_tokens,
        long_context=arguments.long_context,
        long_tokens=arguments.long_tokens,
        bin_tokens=arguments.bin_tokens,
    )
    models = load(ModelOptions.of(arguments))
    longest = max(*plan.contexts, plan.long_context) + max(plan.new_tokens, plan.long_tokens)
    if longest > models.max_positions:
        raise OptionError(f"--context and tokens reach {longest}; the model takes {models.max_positions}.")
    prompts = Prompts(models, builtin=arguments.model is None)
    with tqdm(total=plan.runs, disable=arguments.quiet or None, leave=False) as bar:

        def step(name: str) -> None:
            bar.set_postfix_str(name)
            bar.update()

        found = survey(models, plan, lambda context, number: prompts.batch(context, 1, number, half=1).input_ids, step)
    title = (
        f"{models.name}: the target drafts over {arguments.budget} KV entries ({arguments.dtype}, {arguments.device})"
    )
    print(f"{title}\n\n{tables(found, plan.bin_tokens)}")
    if arguments.json:
        arguments.json.write_text(json.dumps(found.as_dict(), indent=1) + "\n", encoding="utf-8")
    if arguments.plot:
        draw(found, title, arguments.plot)
    return 0
