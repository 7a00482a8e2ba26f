"""Trials: at every token of a text, what the target said there and what its drafts over each policy's view did."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from specplug import Speculator
from specplug.drafters import DraftRequest
from specplug.kv_policies import KVPolicy
from specplug.trees import Chain
from specplug_hf.generation import Generation, prepare
from specplug_hf.reading.panel import Panel
from specplug_hf.reading.script import Dictated, Greedy, Script

CHAIN = 3  # draft tokens a round: what `self` takes by default


@dataclass(frozen=True, slots=True)
class Trials:
    """N places of a batch's texts, where all that stands before was given. `drafts`: by policy. All [N] int64."""

    rows: Tensor
    generated: Tensor  # tokens written before it, of its row
    target: Tensor  # what the target said, reading everything
    drafts: dict[str, Tensor]

    def where(self, mask: Tensor) -> Trials:
        """Only the trials where `mask` [N] is true."""
        drafts = {name: said[mask] for name, said in self.drafts.items()}
        return Trials(self.rows[mask], self.generated[mask], self.target[mask], drafts)


def trials(
    target: PreTrainedModel,
    ids: Tensor,
    policies: Mapping[str, KVPolicy],
    new_tokens: int,
    dictated: Tensor | None = None,
    length: int = CHAIN,
) -> Trials:
    """Read `ids` [B, L] and write `new_tokens` behind them in rounds of `length` + 1: greedily, or `dictated` [B, new_tokens].

    One prompt, one cache and one verify serve all policies, each of which keeps its own view. Rounds are those of a draft
    that is always right, so between two choices of a policy as many tokens pass as ever may. Places that a round's last
    node stands before are verified and not asked for: a chain of `length` has no draft token there.
    """
    panel, script = Panel(policies), Greedy() if dictated is None else Dictated(dictated)
    speculator = Speculator(drafter=panel, tree=f"chain:length={length}", controller="fixed")
    found: list[Trials] = []

    def watched(model: Any, input_ids: Tensor, **rest: Any) -> Any:
        generation = prepare(model, input_ids, speculator, **rest)
        found.extend(_rounds(generation, panel, script, length))
        return generation.finish()

    target.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, do_sample=False, custom_generate=watched
    )
    return _joined(found, tuple(policies))


def _rounds(generation: Generation, panel: Panel, script: Script, length: int) -> Iterator[Trials]:
    """One round's trials at a time."""
    generation.prefill(None)
    host, shape = generation.host, Chain(length).build()
    panel = panel.open(host)
    script.open(generation)
    with generation.model._optimize_model_for_decode(), host.held():
        while not generation.progress.done:
            batch = host.batch()
            request = DraftRequest(batch, shape)
            trees = script.chains(request)
            answers = panel.answers(request, trees)
            said = host.verify(batch, trees).argmax(-1)
            verdict = script.verdict(trees, said)
            assert batch.history_ends is not None
            place = (batch.history_ends - host.prompt_columns)[:, None] + torch.arange(length, device=said.device)
            # a place counts if what stands before it was written, and if there is room for it
            asked = torch.arange(length, device=said.device) <= verdict.num_accepted[:, None]
            asked &= place < generation.progress.limit - host.prompt_columns
            rows = torch.tensor(batch.rows, device=said.device)[:, None].expand_as(place)
            drafts = {name: answer[asked] for name, answer in answers.items()}
            yield Trials(rows[asked], place[asked], said[:, :-1][asked], drafts)
            host.commit(batch, trees, verdict)


def _joined(parts: list[Trials], names: tuple[str, ...]) -> Trials:
    none = torch.zeros(0, dtype=torch.int64)

    def joined(pieces: list[Tensor]) -> Tensor:
        return torch.cat(pieces).cpu() if pieces else none

    return Trials(
        joined([part.rows for part in parts]),
        joined([part.generated for part in parts]),
        joined([part.target for part in parts]),
        {name: joined([part.drafts[name] for part in parts]) for name in names},
    )
