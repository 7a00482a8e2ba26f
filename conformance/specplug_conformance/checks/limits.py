"""Budgets are kept: a policy reads no more than it says, a tree is no larger, a controller orders nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from specplug import KVPolicy, Round, TreeShape
from specplug.drafters import ModelDraft, SelfDraft
from specplug_conformance.check import EVERY, Failure, Trial, check
from specplug_conformance.compare import faulty
from specplug_conformance.request import Request
from specplug_conformance.subject import Feature, State

ACCEPTANCES: tuple[tuple[float, ...], ...] = ((0.9,), (0.3, 0.3, 0.3), (0.6, 0.2, 0.1, 0.05), (0.0, 0.0), (1.0, 1.0))
LENGTHS = (1, 2, 3, 5, 8, 17, 100, 1000, 4096)


@check(
    "budget",
    "a KV policy selects each position once, and of the committed ones no more than its budget",
    frozenset({"kv_policy", "drafter"}),
)
def budget(trial: Trial) -> None:
    world = trial.world()
    policy = _policy(trial.case.make(world))
    if policy is None:
        trial.notes.append("reads no draft cache")
        return
    for length in LENGTHS:
        _check_selection(policy, length)
    if Feature.READS in trial.subject.features:
        most = policy.budget
        request = Request(((1, 2, 3, 1, 2, 3, 4, 5, 6, 7), (4, 4)), new_tokens=12)

        def watch(_: Round, state: State) -> None:
            for row in state.committed():
                reads = state.draft_reads(row)
                if most is not None and reads is not None and reads > most:
                    raise faulty(world, request, f"the draft read {reads} positions of row {row}, its budget is {most}")

        world.speculated(request, trial.speculator(world), watch)


def _policy(made: Any) -> KVPolicy | None:
    if isinstance(made, KVPolicy):
        return made
    return made.kv_policy if isinstance(made, SelfDraft | ModelDraft) else None


def _check_selection(policy: KVPolicy, length: int) -> None:
    selection = policy.select(torch.tensor([length, max(1, length - 1)]))
    if selection is None:
        if policy.budget is not None:
            raise Failure(f"the policy selects everything and says that its budget is {policy.budget}", length=length)
        return
    anchors = selection.anchors
    if anchors.dtype != torch.int64 or anchors.ndim != 4:
        raise Failure(
            f"anchors are {anchors.dtype} with {anchors.ndim} dimensions; int64 [B, layers, Hkv, K] is the contract",
            length=length,
        )
    if bool((anchors < -1).any()) or selection.window < 0:
        raise Failure("an anchor below -1, or a negative window", length=length, window=selection.window)
    for anchored in anchors.flatten(0, 2).tolist():
        real = [position for position in anchored if 0 <= position < length]
        if len(set(real)) != len(real):
            raise Failure("a position is selected twice", length=length, anchors=anchored)
        read = set(real) | set(range(max(0, length - selection.window), length))
        if policy.budget is not None and len(read) > policy.budget:
            raise Failure(
                f"{len(read)} of {length} positions are selected, the budget is {policy.budget}", length=length
            )


@check(
    "limits",
    "trees are well formed and no larger than asked for, whatever the acceptance; plans keep to their arms",
    EVERY,
)
def limits(trial: Trial) -> None:
    world = trial.world()
    if trial.case.kind == "tree":
        _check_builder(trial.case.make(world))
    request = Request(((1, 2, 3, 1, 2, 3), (4, 4, 5), (6,) * 5), new_tokens=11)
    used = trial.speculator(world)

    def watch(finished: Round, _: State) -> None:
        plan, trees = finished.plan, finished.trees
        if plan.shape.size > plan.arm.shape.size or plan.shape.depth > plan.arm.shape.depth:
            raise faulty(world, request, "a plan's tree is larger than its arm's", arm=plan.arm.label)
        if trees.num_nodes - 1 > plan.shape.size or int(trees.depths.max()) > plan.shape.depth:
            raise faulty(
                world, request, f"{trees.num_nodes - 1} tokens of depth {int(trees.depths.max())} were proposed; the plan "
                f"allows {plan.shape.size} of depth {plan.shape.depth}",
            )  # fmt: skip
        if bool((trees.tokens[:, 0] != finished.batch.roots).any()):
            raise faulty(world, request, "node 0 is not the newest committed token")

    world.speculated(request, used, watch)


def _check_builder(builder: Any) -> None:
    declared = {name: getattr(builder, name) for name in ("size", "length", "depth") if hasattr(builder, name)}
    for acceptance in ACCEPTANCES:
        shape = builder.build(acceptance)
        _check_shape(shape, declared, acceptance)
        if builder.build(acceptance) != shape:
            raise Failure("the same acceptance gives another tree", acceptance=list(acceptance))


def _check_shape(shape: Any, declared: dict[str, int], acceptance: Sequence[float]) -> None:
    if not isinstance(shape, TreeShape):
        raise Failure(f"build() returned {type(shape).__name__}, not a TreeShape", acceptance=list(acceptance))
    most = declared.get("size", declared.get("length"))
    if most is not None and shape.size > most:
        raise Failure(f"{shape.size} draft tokens, {most} were asked for", acceptance=list(acceptance))
    if "depth" in declared and shape.depth > declared["depth"]:
        raise Failure(f"depth {shape.depth}, {declared['depth']} was asked for", acceptance=list(acceptance))
