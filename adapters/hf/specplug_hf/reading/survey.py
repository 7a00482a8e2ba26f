"""Policies beside each other on the same texts: acceptance by context, by tokens generated, of needles."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from specplug import SpecplugError
from specplug.kv_policies import KVPolicy
from specplug.specification import build
from specplug_hf.commands.batches import Prompts
from specplug_hf.commands.models import Models
from specplug_hf.policies import check_policy_fits
from specplug_hf.reading.found import Found, Shares
from specplug_hf.reading.needle import LENGTH, Haystack, effect, haystack, place_of, without_needle
from specplug_hf.reading.trials import Trials, trials

PASSAGE_FROM = 256  # a passage begins so far into its text: files begin alike


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure: `policies` as specification strings by name, contexts, texts of each, tokens. `batch`: texts at a time."""

    policies: dict[str, str]
    budget: int
    contexts: tuple[int, ...]
    prompts: int
    new_tokens: int
    long_context: int
    long_tokens: int
    bin_tokens: int
    batch: int

    @property
    def batches(self) -> list[range]:
        """Numbers of the texts that are read together."""
        return [range(at, min(at + self.batch, self.prompts)) for at in range(0, self.prompts, self.batch)]

    @property
    def runs(self) -> int:
        """Readings in all."""
        needles = [context for context in self.contexts if place_of(context, self.budget) is not None]
        return len(self.batches) * (len(self.contexts) + len(needles) + 1)


def survey(models: Models, plan: Plan, prompts: Prompts, step: Callable[[str], None]) -> Found:
    """Measure on the texts of `prompts` that are there to measure on; `step` is told of every reading."""
    found = Found()
    policies = _policies(models, plan, found)
    if not policies:
        return found
    for numbers in plan.batches:
        for context in plan.contexts:
            read = trials(models.target, _texts(prompts, context, numbers), policies, plan.new_tokens)
            _count(found.context, read, numbers, torch.full_like(read.rows, context))
            step(f"context {context}")
            place = place_of(context, plan.budget)
            if place is not None:
                passages = _texts(prompts, PASSAGE_FROM + LENGTH, numbers, half=0)[:, -LENGTH:]
                hay = haystack(_texts(prompts, context, numbers), passages, place)
                _search(models.target, hay, context, numbers, policies, found)
                step(f"needle, context {context}")
        read = trials(models.target, _texts(prompts, plan.long_context, numbers), policies, plan.long_tokens)
        _count(found.generated, read, numbers, read.generated // plan.bin_tokens * plan.bin_tokens)
        _count(found.whole, read, numbers, torch.full_like(read.rows, plan.long_tokens))
        step("long generation")
    return found


def _policies(models: Models, plan: Plan, found: Found) -> dict[str, KVPolicy]:
    """Those that can be made and that the target can serve; of the others `found` says why not."""
    policies = {}
    for name, text in plan.policies.items():
        try:
            policy = build("kv_policies", text)
            check_policy_fits(policy, models.target)
        except SpecplugError as error:  # its package is missing, or the budget is too small for it
            found.left_out[name] = str(error)
        else:
            policies[name] = policy
    return policies


def _texts(prompts: Prompts, length: int, numbers: Iterable[int], half: int = 1) -> Tensor:
    """The first `length` tokens of each text: [B, length]."""
    return torch.cat([prompts.batch(length, 1, number, half).input_ids for number in numbers])


def _count(shares: Shares, read: Trials, numbers: Sequence[int], at: Tensor) -> None:
    """Which drafts said what the target said, by policy and `at` [N]."""
    texts = [numbers[row] for row in read.rows.tolist()]
    for name, said in read.drafts.items():
        for text, place, right in zip(texts, at.tolist(), (said == read.target).tolist(), strict=True):
            shares[name][place].add(text, right)


def _search(
    target: PreTrainedModel,
    hay: Haystack,
    context: int,
    numbers: Sequence[int],
    policies: dict[str, KVPolicy],
    found: Found,
) -> None:
    """What drafts know of a needle, and how much there is of it to be known."""
    without = without_needle(target, hay)
    read = trials(target, hay.ids, policies, hay.answer.shape[1], dictated=hay.answer)
    seen = effect(read, hay, without)
    for shares, mask in ((found.needle, seen.changed), (found.recalled, seen.recalled)):
        few = read.where(mask)
        _count(shares, few, numbers, torch.full_like(few.rows, context))
    marks = {
        "right with the needle": seen.right,
        "right without it": seen.guessed,
        "changed by it": seen.changed,
        "right only with it": seen.recalled,
    }
    for name, mask in marks.items():
        for row, marked in zip(read.rows.tolist(), mask.tolist(), strict=True):
            found.target[name][context].add(numbers[row], marked)


def policies_of(budget: int) -> dict[str, str]:
    """Specification strings of the policies of this comparison by name, at one `budget`."""
    return {
        "full": "full",
        "streaming": f"streaming:sink=4,window={budget - 4}",
        "lambda": f"lambda:sink=4,window={budget - 4}",
        "snapkv once": f"snapkv:budget={budget},refresh=0",
        "snapkv": f"snapkv:budget={budget}",
        "retrieval": f"retrieval:budget={budget}",
        "squeezed": f"squeezed:budget={budget}",
        "kvpress": f"kvpress:budget={budget}",
    }
