"""What is kept of the target's forwards for a call's drafters and KV policies: last queries, last hidden states."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from specplug import Need
from specplug.drafters import Drafter
from specplug.kv_policies import ChoosingPolicy
from specplug_hf.hidden import HiddenStates
from specplug_hf.queries import QueryLog


@dataclass(frozen=True, slots=True)
class Observed:
    """Nothing, unless somebody needs it: neither is free."""

    queries: QueryLog | None = None
    hidden: HiddenStates | None = None

    @contextmanager
    def reading_prompt(self) -> Iterator[None]:
        """Keep what the prompt's forwards within give."""
        with ExitStack() as stack:
            if self.queries is not None:
                stack.enter_context(self.queries.reading_prompt())
            if self.hidden is not None:
                stack.enter_context(self.hidden.watching())
            yield

    def settle_prompt(self, counts: Sequence[int], device: torch.device) -> None:
        """The prompt has been read: the last `counts[b]` columns of row b are real."""
        if self.queries is not None:
            self.queries.settle_prompt(counts, device)
        if self.hidden is not None:
            self.hidden.settle_prompt(device)


def observed_for(model: PreTrainedModel, drafters: Iterable[Drafter], required: frozenset[Need]) -> Observed:
    """What `drafters` that may be chosen, which need `required` together, have to see of `model`."""
    policies = [getattr(part, "kv_policy", None) for drafter in drafters for part in drafter.parts]
    sizes = [policy.queries for policy in policies if isinstance(policy, ChoosingPolicy)]
    queries = QueryLog(model, max(sizes)) if sizes and Need.QUERIES in required else None
    return Observed(queries, HiddenStates(model) if Need.HIDDEN_STATES in required else None)
