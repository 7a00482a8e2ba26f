"""One round of speculative decoding: plan, draft, verify, commit. The same function in every framework."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

from torch import Tensor

from specplug.controllers.base import Plan
from specplug.drafters.base import DraftRequest
from specplug.host import Batch, Commit, Host
from specplug.proposal import check_proposal
from specplug.ragged import limited
from specplug.random import VERIFY_STREAM, uniforms
from specplug.tree import TreeBatch
from specplug.verify import Targets, Verdict, verify_greedy, verify_sampled

if TYPE_CHECKING:
    from specplug.session import Session


@dataclass(frozen=True, slots=True)
class Seconds:
    """Wall time of the parts of one round, in seconds; `other` is the host's batch, laws, and the accept decision."""

    draft: float
    verify: float
    commit: float
    other: float
    plan: float = 0.0  # the controller's

    @property
    def total(self) -> float:
        return self.work + self.plan

    @property
    def work(self) -> float:
        """Without planning: what the round's plan is answerable for."""
        return self.draft + self.verify + self.commit + self.other


@dataclass(frozen=True, slots=True)
class Round:
    """What happened in one round. Tensors are as they were on the device; reading them waits for it.

    `logits` [B, N, V]: the verify's, of the model's dtype, kept while somebody records (trace/) or a drafter has Need.TARGET_PASS.
    """

    batch: Batch
    plan: Plan
    trees: TreeBatch
    targets: Targets
    verdict: Verdict
    commit: Commit
    seconds: Seconds
    logits: Tensor | None = None


def run_round(host: Host, session: Session) -> Round:
    """Advance every row of `host.batch()` by at least one token, exactly as the target alone would have.

    The caller hands the result to `session.observe`, at once or a round later (overlapped scheduling): nothing here
    needs the last round's result. An exception leaves the cache as it was: lengths move only in `commit`.
    """
    recorded = session.recorder is not None
    start = perf_counter()
    batch = host.batch()
    gathered = perf_counter()
    plan = session.controller.plan(batch)
    planned = perf_counter()

    trees = plan.arm.drafter.draft(DraftRequest(batch, plan.shape, plan.arm.grown, recorded))
    check_proposal(trees, batch, plan, host.vocab_size)
    if plan.sizes is not None:
        trees = limited(trees, plan.shape, plan.sizes)
    drafted = perf_counter()

    logits = host.verify(batch, trees)
    verified = perf_counter()

    targets = host.distributions(batch, logits, trees)
    verdict = accept(batch, trees, targets)
    decided = perf_counter()

    commit = host.commit(batch, trees, verdict)
    done = perf_counter()
    seconds = Seconds(
        draft=drafted - planned,
        verify=verified - drafted,
        commit=done - decided,
        other=(gathered - start) + (decided - verified),
        plan=planned - gathered,
    )
    return Round(batch, plan, trees, targets, verdict, commit, seconds, logits if session.keeps_logits else None)


def accept(batch: Batch, trees: TreeBatch, targets: Targets) -> Verdict:
    """The path that the target accepts: greedy by its argmax, sampled by recursive rejection (verify.py)."""
    if targets.tokens is not None:
        return verify_greedy(trees, targets.tokens)
    assert targets.probs is not None
    # the root is not up for acceptance, so its number is free for the bonus token
    accepts = uniforms(batch.seeds, batch.lengths, VERIFY_STREAM, trees.num_nodes)
    return verify_sampled(trees, targets.probs, accepts, accepts[:, 0])
