"""KV policies asked side by side: what the target, drafting over the view of each, would say at every token of one text."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from specplug.drafters import Drafter, DraftRequest, SelfDraft
from specplug.host import DraftRunner
from specplug.kv_policies import KVPolicy
from specplug.needs import Need
from specplug.tree import TreeBatch


class Panel(Drafter):
    """One self-draft a policy. It proposes nothing: others' chains are shown to it, and each policy answers at every token."""

    def __init__(self, policies: Mapping[str, KVPolicy]) -> None:
        self.policies = dict(policies)
        self._runners: dict[str, DraftRunner] = {}

    @property
    def parts(self) -> tuple[Drafter, ...]:
        """The drafts, for the host to see what has to be gathered for them."""
        return tuple(SelfDraft(policy) for policy in self.policies.values())

    @property
    def required(self) -> frozenset[Need]:
        return frozenset().union(*(part.required for part in self.parts))

    def setup(self) -> None:
        self._runners = {name: self.host.runner(None, policy) for name, policy in self.policies.items()}

    def answers(self, request: DraftRequest, trees: TreeBatch) -> dict[str, Tensor]:
        """What each draft says at every node of the chains `trees` but the last, [B, N - 1] int64, having read those before it."""
        return {name: _answers(runner, request, trees) for name, runner in self._runners.items()}


def _answers(runner: DraftRunner, request: DraftRequest, trees: TreeBatch) -> Tensor:
    said = [runner.begin(request.batch, request.shape).argmax(-1)]
    for level in range(1, trees.num_nodes - 1):
        logits = runner.extend(trees.tokens[:, level : level + 1], level)
        said.append(logits.argmax(-1))
    return torch.cat(said, dim=1)
