"""Drafters that propose rubbish get a clear error or are rejected; the output is never wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from specplug import Drafter, DraftRequest, ProposalError, Speculator, TreeBatch, roots_only
from specplug.tree import chain_trees, fill_shape
from specplug.trees import KAry
from specplug_conformance.check import Trial, check
from specplug_conformance.compare import faulty, same_tokens
from specplug_conformance.request import Request
from specplug_conformance.subject import Feature

Propose = Callable[[DraftRequest, int], TreeBatch]
TREE = "kary:branch=2,depth=2"


@dataclass
class Scripted(Drafter):
    """Proposes whatever a function says."""

    propose: Propose

    def draft(self, request: DraftRequest) -> TreeBatch:
        return self.propose(request, self.host.vocab_size)


def _filled(request: DraftRequest, tokens: Tensor) -> TreeBatch:
    tokens[:, 0] = request.batch.roots
    return fill_shape(request.shape, tokens)


def _noise(request: DraftRequest, vocab: int) -> Tensor:
    generator = torch.Generator().manual_seed(request.batch.context)
    return torch.randint(0, vocab, (request.batch.num_rows, request.shape.num_nodes), generator=generator)


def rubbish(request: DraftRequest, vocab: int) -> TreeBatch:
    """Valid tokens that mean nothing."""
    return _filled(request, _noise(request, vocab))


def twins(request: DraftRequest, vocab: int) -> TreeBatch:
    """All nodes propose the same token."""
    return _filled(request, torch.full_like(_noise(request, vocab), 1))


def nothing(request: DraftRequest, vocab: int) -> TreeBatch:
    """Roots only."""
    return roots_only(request.batch.roots)


def out_of_range(request: DraftRequest, vocab: int) -> TreeBatch:
    """A token that the vocabulary does not have."""
    return _filled(request, torch.full_like(_noise(request, vocab), vocab))


def negative(request: DraftRequest, vocab: int) -> TreeBatch:
    """A token below zero."""
    return _filled(request, torch.full_like(_noise(request, vocab), -1))


def too_much(request: DraftRequest, vocab: int) -> TreeBatch:
    """Three levels where two are allowed."""
    shape = KAry(2, request.shape.depth + 1).build()
    return fill_shape(shape, request.batch.roots[:, None].repeat(1, shape.num_nodes))


def other_rows(request: DraftRequest, vocab: int) -> TreeBatch:
    """A row too many."""
    return roots_only(torch.cat([request.batch.roots, request.batch.roots[:1]]))


def other_root(request: DraftRequest, vocab: int) -> TreeBatch:
    """A root that is not the newest token."""
    return chain_trees((request.batch.roots + 1) % vocab, request.batch.roots[:, None])


def _with_laws(request: DraftRequest, vocab: int, value: float) -> TreeBatch:
    trees = _filled(request, _noise(request, vocab))
    laws = torch.full((request.batch.num_rows, request.shape.num_nodes, vocab), value)
    index = torch.tensor([-1, *request.shape.parents[1:]])
    return replace(trees, laws=laws, law_index=index[None])


def nan_law(request: DraftRequest, vocab: int) -> TreeBatch:
    """Laws of NaN."""
    return _with_laws(request, vocab, float("nan"))


def heavy_law(request: DraftRequest, vocab: int) -> TreeBatch:
    """Laws that sum to two."""
    return _with_laws(request, vocab, 2.0 / vocab)


HARMLESS = (rubbish, twins, nothing)
REFUSED = (out_of_range, negative, too_much, other_rows, other_root, nan_law, heavy_law)


@check(
    "hostile",
    "a drafter's rubbish is rejected or refused with a ProposalError; it never reaches the output",
    frozenset({"adapter"}),
)
def hostile(trial: Trial) -> None:
    world = trial.world()
    greedy = Request(((1, 2, 3, 1, 2), (4, 4)), new_tokens=8)
    requests = [greedy]
    if Feature.SAMPLING in trial.subject.features:
        requests.append(replace(greedy, seeds=(5, 6)))
    for request in requests:
        for propose in REFUSED:
            try:
                world.speculated(request, _speculator(propose))
            except ProposalError:
                continue
            raise faulty(world, request, f"no ProposalError for a drafter that proposes: {propose.__doc__}")
    for propose in HARMLESS:
        same_tokens(trial, world, greedy, world.speculated(greedy, _speculator(propose)), world.plain(greedy))


def _speculator(propose: Propose) -> Speculator:
    return Speculator(drafter=Scripted(propose), tree=TREE, controller="fixed")
