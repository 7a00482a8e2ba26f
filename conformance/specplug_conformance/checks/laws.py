"""Sampled output has plain generation's law: exactly, round by round, and by chi-square, end to end."""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import Tensor

from specplug import Round, TreeBatch
from specplug.tree import chain_shape, fill_shape
from specplug.trees import KAry
from specplug_conformance.check import EVERY, Trial, check
from specplug_conformance.chisquare import p_value
from specplug_conformance.compare import faulty
from specplug_conformance.exact import emitted_law, joint_law, orders, tokens_to
from specplug_conformance.request import Request
from specplug_conformance.subject import Feature, State, World

VOCAB = 4
PROMPT = (1, 2, 3, 1, 2)
LAW_TOLERANCE = 2e-6  # float32 laws; half precision is off by 1e-4 and more
EMITTED_TOLERANCE = 1e-5


@check("law-exact", "at every node the law is the target's, and verification turns the proposal into exactly it", EVERY)
def law_exact(trial: Trial) -> None:
    trial.needs(Feature.SAMPLING)
    world = trial.world(vocab=VOCAB)
    warped = {"temperature": 0.8, "top_k": 3} if Feature.WARPERS in trial.subject.features else {}
    for request in (
        Request((PROMPT, (0, 3)), new_tokens=7, seeds=(1, 2)),
        Request((PROMPT, (2, 2, 2)), new_tokens=7, seeds=(3, 4), **warped),  # type: ignore[arg-type]
    ):
        seen: list[tuple[Round, dict[Hashable, list[int]]]] = []
        before: dict[Hashable, list[int]] = {}

        def watch(finished: Round, state: State) -> None:
            seen.append((finished, dict(before)))  # noqa: B023
            before.clear()  # noqa: B023
            before.update(state.committed())  # noqa: B023

        world.speculated(request, trial.speculator(world), watch)
        for finished, texts in seen[1:]:  # before the first round nobody has looked yet
            _check_nodes(world, request, finished, texts)
            for place in range(finished.batch.num_rows):
                _check_emitted(trial, world, request, finished, place)


def _check_nodes(world: World, request: Request, finished: Round, texts: dict[Hashable, list[int]]) -> None:
    trees, probs = finished.trees, finished.targets.probs
    if probs is None:
        raise faulty(world, request, "a sampled batch was verified without laws")
    for place, row in enumerate(finished.batch.rows):
        for node in range(trees.num_nodes):
            if trees.valid is None or bool(trees.valid[place, node]):
                tokens = [*texts[row], *tokens_to(trees, place, node)]
                wanted = _law(world, tokens, request, row)
                error = float((probs[place, node].double().cpu() - wanted).abs().max())
                if error > LAW_TOLERANCE:
                    raise faulty(
                        world, request, f"the law at a tree node is off by {error:.1e}", row=row, tokens=tokens,
                        law=probs[place, node].tolist(), wanted=wanted.tolist(),
                    )  # fmt: skip


def _law(world: World, tokens: list[int], request: Request, row: Hashable) -> Tensor:
    assert isinstance(row, int)
    return world.scores(tokens, request, len(request.prompts[row])).double().softmax(-1)


def _check_emitted(trial: Trial, world: World, request: Request, finished: Round, place: int) -> None:
    """The first emitted token's law, over all that the draft might have drawn, is the target's."""
    found = _all_draws(finished.trees, place)
    if found is None:
        trial.notes.append("children of several laws under one root: what they emit is left to the chi-square")
        return
    tree, weights = found
    assert finished.targets.probs is not None
    root = finished.targets.probs[place, :1].cpu()
    laws = emitted_law(tree, torch.cat([root] * tree.num_nodes)[None].expand(tree.num_rows, -1, -1).contiguous())
    first = torch.zeros(root.shape[-1], dtype=torch.float64)
    for law, weight in zip(laws, weights, strict=True):
        for path, mass in law.items():
            first[path[0]] += weight * mass
    error = float((first - root[0].double()).abs().max())
    if error > EMITTED_TOLERANCE:
        raise faulty(
            world, request, f"verification emits the first token with a law that is off by {error:.1e}",
            law=first.tolist(), wanted=root[0].tolist(),
        )  # fmt: skip


def _all_draws(trees: TreeBatch, place: int) -> tuple[TreeBatch, list[float]] | None:
    """The root and its children, once for everything the draft might have drawn there, and how likely each is.

    None if the children do not all come from one law, or all from none.
    """
    children = [c for c in trees.children.expand(trees.num_rows, -1, -1)[place, 0].tolist() if c >= 0]
    if trees.valid is not None:
        children = [c for c in children if bool(trees.valid[place, c])]
    tokens = trees.tokens[place].cpu()
    shape = KAry(len(children), 1).build() if children else chain_shape(0)
    index = None if trees.law_index is None else trees.law_index.expand(trees.num_rows, -1)[place]
    drawn = [c for c in children if index is not None and int(index[c]) >= 0]
    if not drawn:
        return fill_shape(shape, tokens[[0, *children]][None]), [1.0]
    assert trees.laws is not None and index is not None
    if drawn != children or len({int(index[c]) for c in drawn}) > 1:
        return None
    law = trees.laws[place, int(index[children[0]])].cpu()
    draws = list(orders(law, len(children)))
    rows = torch.tensor([[int(tokens[0]), *drawn_tokens] for drawn_tokens, _ in draws])
    laws = law[None, None].expand(len(draws), 1, -1)
    return fill_shape(shape, rows, laws=laws), [weight for _, weight in draws]


@check("law-sampled", "sampled text has plain generation's law: chi-square over the first tokens", EVERY, tests=2)
def law_sampled(trial: Trial) -> None:
    trial.needs(Feature.SAMPLING)
    _compare_law(trial, Request((), new_tokens=3))
    if Feature.WARPERS in trial.subject.features:
        _compare_law(trial, Request((), new_tokens=3, temperature=1.4, top_p=0.8))


def _compare_law(trial: Trial, request: Request) -> None:
    world, count, n = trial.world(vocab=VOCAB, dtype="float32"), request.new_tokens, trial.effort.samples
    # rows have room for more than is looked at, or the last round would verify a root alone
    asked = Request(
        (PROMPT,) * n, request.new_tokens + 2, tuple(range(n)), request.temperature, request.top_k, request.top_p
    )
    texts = world.speculated(asked, trial.speculator(world))
    cells = torch.tensor([[text[i] for i in range(count)] for text in texts])
    cell = (cells * torch.tensor([VOCAB ** (count - 1 - i) for i in range(count)])).sum(1)
    law = joint_law(lambda path: _law(world, [*PROMPT, *path], asked, 0), VOCAB, count)
    p = p_value(torch.bincount(cell, minlength=VOCAB**count), law)
    if p < trial.alarm:
        single = Request((PROMPT,), asked.new_tokens, (0,), asked.temperature, asked.top_k, asked.top_p)
        raise faulty(
            world, single, f"{n} samples of {count} tokens do not follow the target's law (p = {p:.1e})", samples=n,
            p_value=p, alarm=trial.alarm,
        )  # fmt: skip


@check(
    "draws",
    "what a draft proposes was really drawn from the law it says",
    frozenset({"drafter", "kv_policy", "tree"}),
    tests=1,
)
def draws(trial: Trial) -> None:
    trial.needs(Feature.SAMPLING)
    world, n = trial.world(vocab=VOCAB, dtype="float32"), trial.effort.samples
    asked = Request((PROMPT,) * n, 8, tuple(range(1000, 1000 + n)))
    firsts: list[Round] = []
    # rows differ after the first token, so the rounds of rows with one and the same text are what can be compared
    world.speculated(
        asked, trial.speculator(world), lambda finished, _: firsts.append(finished) if not firsts else None
    )
    trees = firsts[0].trees
    if trees.laws is None or trees.law_index is None:
        trial.notes.append("deterministic proposals: nothing is drawn")
        return
    index = trees.law_index.expand(trees.num_rows, -1)
    children = [c for c in trees.children[0, 0].tolist() if c >= 0 and int(index[0, c]) >= 0]
    if trees.shape is None or not children:
        trial.notes.append("proposals without a common shape: the draws cannot be counted")
        return
    for root in range(VOCAB):
        rows = (firsts[0].batch.roots == root).nonzero().flatten().cpu()
        if len(rows) * 4 >= n:
            law = trees.laws[rows[0], int(index[0, children[0]])].cpu()
            listed = list(orders(law, len(children)))
            place = {tokens: i for i, (tokens, _) in enumerate(listed)}
            proposed = [tuple(tokens) for tokens in trees.tokens[rows][:, children].tolist()]
            counts = torch.zeros(len(listed) + 1)
            for tokens in proposed:
                counts[place.get(tokens, len(listed))] += 1
            p = p_value(counts, torch.tensor([weight for _, weight in listed] + [0.0]))
            if p < trial.alarm:
                single = Request((PROMPT,), 8, (0,))
                raise faulty(
                    world, single, f"children of the root are not drawn from the law that goes with them (p = {p:.1e})",
                    samples=len(rows), law=law.tolist(),
                )  # fmt: skip
            return
    trial.notes.append("no token was frequent enough to count draws behind it")
