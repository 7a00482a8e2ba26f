"""Policies beside each other on the same texts. The output is the same whoever drafts, so all see the same rounds' starts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from specplug import SpecplugError
from specplug_hf.commands.models import Models
from specplug_hf.reading.needle import LENGTH, haystack
from specplug_hf.reading.rounds import first_tokens

DEPTHS = (0.1, 0.5, 0.9)


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure: `policies` as specification strings by name, contexts, prompts of each, tokens."""

    policies: dict[str, str]
    contexts: tuple[int, ...]
    prompts: int
    new_tokens: int
    long_context: int
    long_tokens: int
    bin_tokens: int

    @property
    def runs(self) -> int:
        """Generations in all."""
        return len(self.policies) * self.prompts * (len(self.contexts) * (1 + len(DEPTHS)) + 1)


@dataclass(slots=True)
class Share:
    """Rounds, and those whose first draft token was the target's."""

    rounds: int = 0
    accepted: int = 0

    def add(self, accepted: bool) -> None:
        """Count one round."""
        self.rounds += 1
        self.accepted += accepted

    @property
    def value(self) -> float:
        """Share accepted; NaN where there is nothing."""
        return self.accepted / self.rounds if self.rounds else float("nan")


@dataclass(slots=True)
class Found:
    """By policy: acceptance by context, by tokens generated (start of the bin), of needles by context; why one was left out."""

    context: dict[str, dict[int, Share]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(Share)))
    generated: dict[str, dict[int, Share]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(Share)))
    needle: dict[str, dict[int, Share]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(Share)))
    left_out: dict[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        parts = {"context": self.context, "generated": self.generated, "needle": self.needle}
        shares = {
            part: {
                name: {str(at): asdict(s) | {"share": s.value} for at, s in by.items()} for name, by in values.items()
            }
            for part, values in parts.items()
        }
        return shares | {"left_out": self.left_out}


def survey(models: Models, plan: Plan, texts: Callable[[int, int], Tensor], step: Callable[[str], None]) -> Found:
    """Measure. `texts(context, number)`: a prompt [1, context]; `step` is told of every generation."""
    found = Found()
    for name, policy in plan.policies.items():
        try:
            for _ in _measured(models, plan, texts, found, name, policy):
                step(name)
        except SpecplugError as error:  # a policy whose package is missing, or that this model cannot serve
            found.left_out[name] = str(error)
    return found


def _measured(
    models: Models, plan: Plan, texts: Callable[[int, int], Tensor], found: Found, name: str, policy: str
) -> Iterator[None]:
    """One generation at a time."""
    target = models.target
    for number in range(plan.prompts):
        for context in plan.contexts:
            for first in first_tokens(target, policy, texts(context, number), plan.new_tokens):
                found.context[name][context].add(first.accepted)
            yield
            for place, depth in enumerate(DEPTHS):
                # a passage of another text, each from another place of it
                passage = texts(len(DEPTHS) * LENGTH, number + plan.prompts)[0, place * LENGTH : (place + 1) * LENGTH]
                hay = haystack(texts(context, number), depth, passage)
                for first in first_tokens(target, policy, hay.ids, len(hay.answer), dictated=hay.answer):
                    found.needle[name][context].add(first.accepted)
                yield
        for first in first_tokens(target, policy, texts(plan.long_context, number), plan.long_tokens):
            found.generated[name][first.generated // plan.bin_tokens * plan.bin_tokens].add(first.accepted)
        yield


def policies_of(budget: int, names: Sequence[str]) -> dict[str, str]:
    """Specification strings of `names` at one `budget`."""
    known = {
        "full": "full",
        "streaming": f"streaming:sink=4,window={budget - 4}",
        "lambda": f"lambda:sink=4,window={budget - 4}",
        "snapkv once": f"snapkv:budget={budget},refresh=0",
        "snapkv": f"snapkv:budget={budget}",
        "retrieval": f"retrieval:budget={budget}",
        "squeezed": f"squeezed:budget={budget}",
        "kvpress": f"kvpress:budget={budget}",
    }
    return {name: known[name] for name in (names or known)}
