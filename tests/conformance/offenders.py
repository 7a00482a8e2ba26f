"""Deliberate offenders: faulty plugins, and faults planted in the core and in the toy adapter.

Each names the checks that it fails. What fails nothing would prove nothing about the check that should have seen it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from specplug import (
    Controller,
    Drafter,
    DraftRequest,
    Hindsight,
    KVPolicy,
    KVSelection,
    Plan,
    TreeBatch,
    TreeBuilder,
    verify,
)
from specplug import round as rounds
from specplug.drafters import ModelDraft, PromptLookup, expand
from specplug.host import Batch
from specplug.stats import SpecStats
from specplug.tree import TreeShape, chain_shape, chain_trees, roots_only
from specplug_conformance import Case
from specplug_conformance.toy import host as toy_host
from specplug_conformance.toy import subject as toy_subject
from specplug_conformance.toy.host import ToyHost
from specplug_conformance.toy.subject import ToyWorld

MODEL = Case("model", "drafter", lambda draft: ModelDraft(draft), tree="kary:branch=2,depth=2")
Patch = Callable[[pytest.MonkeyPatch], None]


@dataclass(frozen=True)
class Offender:
    """A fault: a faulty `case`, or a `patch` under which a good one runs.

    `fails`: the checks that must see it. `may`: those that see it if their few examples happen to show it.
    """

    name: str
    fails: frozenset[str]
    may: frozenset[str] = frozenset()
    case: Case = MODEL
    patch: Patch = lambda monkeypatch: None


OFFENDERS: list[Offender] = []


# What a wrong number anywhere in the target's forward may show up in.
WRONG_OUTPUT = frozenset({
    "greedy", "greedy-fp32", "processors", "stopping", "batch", "joins", "cache", "interruption", "law-exact", "law-sampled",
})  # fmt: skip


def offender(*fails: str, may: frozenset[str] = frozenset(), case: Case = MODEL) -> Callable[[Patch], Patch]:
    def add(patch: Patch) -> Patch:
        OFFENDERS.append(Offender(patch.__name__, frozenset(fails), may, case, patch))
        return patch

    return add


def faulty_plugin(kind: str, *fails: str, tree: str = "chain:length=3") -> Callable[[type], type]:
    def add(cls: type) -> type:
        OFFENDERS.append(Offender(cls.__name__, frozenset(fails), case=Case(cls.__name__, kind, cls, tree=tree)))
        return cls

    return add


# --- the verifier


@offender("law-exact", "law-sampled")
def residual_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "_residual", lambda p, q, token: p)


@offender("law-exact", "law-sampled")
def children_in_the_wrong_order(monkeypatch: pytest.MonkeyPatch) -> None:
    real = verify._verify_children
    monkeypatch.setattr(
        verify, "_verify_children", lambda t, p, a, children, *rest: real(t, p, a, children.flip(1), *rest)
    )


@offender("law-exact")
def q_not_renormalised(monkeypatch: pytest.MonkeyPatch) -> None:
    real_residual, real_without = verify._residual, verify._without

    def residual(p: Any, q: Any, token: Any) -> Any:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(verify, "_without", real_without)
            return real_residual(p, q, token)

    monkeypatch.setattr(verify, "_residual", residual)
    monkeypatch.setattr(verify, "_without", lambda law, token: law.scatter(1, token[:, None], 0.0))


@offender("law-exact")
def sampling_in_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    real = ToyHost.distributions

    def distributions(self: Any, *args: Any) -> Any:
        targets = real(self, *args)
        return targets if targets.probs is None else replace(targets, probs=targets.probs.half().float())

    monkeypatch.setattr(ToyHost, "distributions", distributions)


@offender("law-sampled")
def one_number_for_acceptance_and_bonus(monkeypatch: pytest.MonkeyPatch) -> None:
    real = rounds.verify_sampled
    monkeypatch.setattr(
        rounds, "verify_sampled", lambda t, p, accept, bonus: real(t, p, bonus[:, None].expand_as(accept), bonus)
    )


@offender("seeds", "batch")
def draws_that_no_seed_governs(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)

    def uniforms(seeds: Any, positions: Any, stream: int, count: int) -> Any:
        return torch.rand((len(seeds), count), generator=generator, dtype=torch.float64).clamp(1e-9, 1 - 1e-9)

    monkeypatch.setattr(rounds, "uniforms", uniforms)


@offender("batch")
def draws_that_go_by_the_place_in_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    real = rounds.uniforms
    monkeypatch.setattr(rounds, "uniforms", lambda seeds, *rest: real(torch.arange(len(seeds)), *rest))


# --- the drafting


@offender("draws", "law-sampled")
def drawn_from_another_law(monkeypatch: pytest.MonkeyPatch) -> None:
    real = expand.__globals__["_draw_children"]
    monkeypatch.setitem(
        expand.__globals__,
        "_draw_children",
        lambda batch, law, *rest: real(batch, (law.log() * 0.3).softmax(-1), *rest),
    )


@offender("hostile", case=Case("toy", "adapter", toy_subject.ToySubject))
def proposals_that_nobody_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "check_proposal", lambda *args: None)


# --- the adapter


@offender("greedy", "greedy-fp32", "law-exact", "cache", may=WRONG_OUTPUT)
def stale_position_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every node stands where the root stands."""
    real = ToyHost.verify
    monkeypatch.setattr(
        ToyHost,
        "verify",
        lambda self, batch, trees: real(self, batch, replace(trees, depths=torch.zeros_like(trees.depths))),
    )


@offender("greedy", "greedy-fp32", "cache", may=WRONG_OUTPUT)
def the_roots_entry_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    real = ToyHost.commit

    def commit(self: Any, batch: Any, *args: Any) -> Any:
        rows = list(self.rows)
        result = real(self, batch, *args)
        for place, row in enumerate(rows):
            self.entries[row, int(batch.lengths[place])] = 0
        return result

    monkeypatch.setattr(ToyHost, "commit", commit)


@offender("greedy", "greedy-fp32", "law-exact", may=WRONG_OUTPUT)
def a_rejected_slot_stays_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    real = ToyHost.verify

    def verify_with_one_slot_more(self: Any, batch: Any, trees: TreeBatch) -> Any:
        ancestors = trees.ancestors.clone()
        if trees.num_nodes > 2:
            ancestors[:, 2, 1] = True  # its elder sibling
        return real(self, batch, replace(trees, ancestors=ancestors))

    monkeypatch.setattr(ToyHost, "verify", verify_with_one_slot_more)


@offender("greedy", "greedy-fp32", "batch", may=WRONG_OUTPUT)
def a_neighbours_row_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    real = toy_host.ToyModel.logits

    def logits(self: Any, tokens: Any, positions: Any, entries: Any, places: Any, seen: Any) -> Any:
        return real(self, tokens, positions, entries.roll(1, 0), places, seen)

    monkeypatch.setattr(toy_host.ToyModel, "logits", logits)


@offender("processors")
def processors_with_the_roots_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    real = ToyHost._by_prefix

    def by_prefix(self: Any, logits: Any, trees: TreeBatch) -> Any:
        root = trees.tokens[:, :1].expand_as(trees.tokens)
        return real(self, logits, replace(trees, tokens=root))

    monkeypatch.setattr(ToyHost, "_by_prefix", by_prefix)


@offender("stopping")
def stopping_noticed_after_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    real = ToyHost.commit

    def commit(self: Any, batch: Any, trees: Any, verdict: Any) -> Any:
        rows, request = list(self.rows), self.request
        self.request = replace(request, end_tokens=())
        result = real(self, batch, trees, verdict)
        self.request = request
        ended = [r for r in rows if self.text[r, int(self.ends[r]) - 1].item() in request.end_tokens]
        self.rows = [row for row in self.rows if row not in ended]
        return replace(result, finished=tuple({*result.finished, *ended}))

    monkeypatch.setattr(ToyHost, "commit", commit)


@offender("joins")
def what_was_remembered_hangs_on_the_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once a row has left early, the others take over each other's roots."""
    real = ToyHost.batch

    def batch(self: Any) -> Any:
        made, asked = real(self), self.request
        if asked.leaves and len(self.rows) > 1:
            return replace(made, roots=made.roots.roll(1))
        return made

    monkeypatch.setattr(ToyHost, "batch", batch)


@offender("interruption")
def settings_put_back_only_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    real = ToyWorld.speculated

    def speculated(self: Any, *args: Any) -> Any:
        self.draft.place[0, 0] += 1.0
        result = real(self, *args)
        self.draft.place[0, 0] -= 1.0
        return result

    monkeypatch.setattr(ToyWorld, "speculated", speculated)


@offender("statistics")
def the_bonus_is_counted_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    real = SpecStats.observe

    def observe(self: Any, finished: Any, kv_bytes: int) -> None:
        real(self, finished, kv_bytes)
        self.emitted += finished.batch.num_rows

    monkeypatch.setattr(SpecStats, "observe", observe)


# --- plugins


@faulty_plugin("drafter", "law-sampled")
class KeepsWhatItLikes(Drafter):
    """Draws a token from the uniform law, and throws it away unless it likes it."""

    def draft(self, request: DraftRequest) -> TreeBatch:
        batch, vocab = request.batch, self.host.vocab_size
        if not batch.sampling or not request.shape.size:
            return roots_only(batch.roots)
        law = torch.full((batch.num_rows, 1, vocab), 1.0 / vocab)
        drawn = (batch.seeds * 31 + batch.lengths * 7).remainder(vocab)[:, None]
        kept = (drawn == 0).any(1).long()
        trees = chain_trees(batch.roots, drawn, kept)
        index = torch.tensor([[-1, 0]])
        return replace(trees, laws=law, law_index=index)


@faulty_plugin(
    "drafter",
    "greedy",
    "greedy-fp32",
    "processors",
    "stopping",
    "batch",
    "joins",
    "law-exact",
    "law-sampled",
    "draws",
    "seeds",
    "cache",
    "interruption",
    "limits",
    "statistics",
)
class OutOfRange(Drafter):
    """Proposes a token that there is not."""

    def draft(self, request: DraftRequest) -> TreeBatch:
        return chain_trees(request.batch.roots, torch.full_like(request.batch.roots, self.host.vocab_size)[:, None])


@faulty_plugin("drafter", "rehearsal")
class LooksAhead(Drafter):
    """Proposes whatever stands behind the text, which is what was committed once it has been."""

    rehearses = True

    def draft(self, request: DraftRequest) -> TreeBatch:
        batch = request.batch
        if not request.shape.size or batch.history is None:
            return roots_only(batch.roots)
        ahead = batch.history_ends.clamp(max=batch.history.shape[1] - 1)
        return chain_trees(batch.roots, batch.history.gather(1, ahead[:, None]))


@faulty_plugin("drafter", "rehearsal")
class Remembers(Drafter):
    """Proposes something else every time."""

    rehearses = True

    def setup(self) -> None:
        self.calls = 0

    def draft(self, request: DraftRequest) -> TreeBatch:
        if not request.shape.size:
            return roots_only(request.batch.roots)
        self.calls += 1
        return chain_trees(
            request.batch.roots, torch.full_like(request.batch.roots, self.calls % self.host.vocab_size)[:, None]
        )


@faulty_plugin("drafter", "rehearsal")
class Flatters(PromptLookup):
    """Says in hindsight that everything would have been taken."""

    def hindsight(self, batch: Batch, ago: Sequence[int], shape: TreeShape) -> Hindsight:
        return Hindsight(ago, [True] * len(ago))


@faulty_plugin("kv_policy", "budget")
class ReadsMore(KVPolicy):
    """Says eight, reads nine."""

    budget = 8

    def select(self, lengths: torch.Tensor) -> KVSelection:
        return KVSelection(torch.arange(2)[None, None, None], 7)


@faulty_plugin("kv_policy", "budget")
class SelectsTwice(KVPolicy):
    """The first position twice."""

    def select(self, lengths: torch.Tensor) -> KVSelection:
        return KVSelection(torch.zeros(1, 1, 1, 2, dtype=torch.int64), 4)


@faulty_plugin("tree", "limits")
class TooLarge(TreeBuilder):
    """Five draft tokens where the size says four, once acceptance is high."""

    size = 4

    def build(self, acceptance: Any = (0.5,)) -> Any:
        return chain_shape(5 if acceptance[0] > 0.8 else 4)


@faulty_plugin("controller", "limits")
class OrdersMore(Controller):
    """Orders a longer chain than the arm has."""

    def plan(self, batch: Any) -> Plan:
        arm = self.arms[0]
        return Plan(arm, chain_shape(min(arm.shape.depth + 2, max(0, batch.room - 1))))
