"""One generation with the target drafting over a policy's view: in which rounds its first draft token was accepted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import LogitsProcessorList, PreTrainedModel

from specplug import Speculator
from specplug_hf.commands.dictation import Dictation
from specplug_hf.generation import prepare


@dataclass(frozen=True, slots=True)
class FirstToken:
    """A round: how many tokens had been generated before it, the token that the target chose, whether the draft had it."""

    generated: int
    token: int
    accepted: bool


def first_tokens(
    target: PreTrainedModel, policy: str, ids: Tensor, new_tokens: int, length: int = 3, dictated: Tensor | None = None
) -> list[FirstToken]:
    """The rounds of greedy generation behind `ids` [1, L], with chains of `length`. `dictated` [n]: what is to be written."""
    speculator = Speculator(drafter="self", kv_policy=policy, tree=f"chain:length={length}", controller="fixed")
    found: list[FirstToken] = []

    def watched(model: Any, input_ids: Tensor, **rest: Any) -> Any:
        generation = prepare(model, input_ids, speculator, **rest)
        written = 1  # the first token is the prompt's own
        for finished in generation.rounds():
            if finished.trees.num_nodes > 1:
                first = int(finished.verdict.tokens(finished.trees)[0, 0])
                found.append(FirstToken(written, first, int(finished.verdict.num_accepted[0]) > 0))
            written += finished.commit.counts[0]
        return generation.finish()

    more = {} if dictated is None else {"logits_processor": LogitsProcessorList([Dictation(dictated, ids.shape[1])])}
    target.generate(ids, max_new_tokens=new_tokens, do_sample=False, custom_generate=watched, **more)
    return found
