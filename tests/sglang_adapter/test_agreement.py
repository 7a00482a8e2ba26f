"""Tensor parallelism: ranks whose clocks differ plan the same, since only the first rank plans."""

from __future__ import annotations

from types import SimpleNamespace

from specplug.controllers import Arm, Controller
from specplug.controllers.base import Plan, planned
from specplug.drafters import NoDraft
from specplug.tree import ROOT_ONLY, chain_shape
from specplug.trees import Sequoia
from specplug_sglang.agreement import AgreedController


class Fickle(Controller):
    """Plans by a clock of its own."""

    def __init__(self, arms, start):
        self.arms, self.clock, self.seen = arms, start, 0

    def plan(self, batch):
        self.clock += 1
        return planned(self.arms[self.clock % len(self.arms)], batch)

    def observe(self, finished):
        self.seen += 1


def arms():
    """Equal arms, made anew: every rank has its own objects."""
    return (
        Arm("chain", NoDraft(), chain_shape(4)),
        Arm("none", NoDraft(), ROOT_ONLY),
        Arm("long", NoDraft(), chain_shape(6)),
    )


def test_all_ranks_take_the_first_ranks_plan():
    wire = []

    def send(value):
        if value is not None:
            wire.append(value)
        return wire[-1]

    inner = [Fickle(arms(), 0), Fickle(arms(), 1)]
    ranks = [AgreedController(controller, rank, send) for rank, controller in enumerate(inner)]
    batch = SimpleNamespace(sampling=False, room=4)
    for _ in range(6):
        first, second = (rank.plan(batch) for rank in ranks)
        assert first.arm.label == second.arm.label and first.shape == second.shape and first.shape.depth <= 3
        assert second.arm is ranks[1].arms[[a.label for a in ranks[1].arms].index(second.arm.label)]
        for rank in ranks:
            rank.observe(None)
    assert {number for number, *_ in wire} == {0, 1, 2}
    assert [controller.seen for controller in inner] == [6, 0] and inner[1].clock == 1


def test_any_tree_and_any_sizes_cross():
    """Also trees that are no part of an arm's, such as goodput makes."""

    class Shaped(Fickle):
        def plan(self, batch):
            return Plan(self.arms[2], Sequoia(5, 2).build(), (5, 1))

    wire = []

    def send(value):
        wire.extend([] if value is None else [value])
        return wire[-1]

    plans = [AgreedController(Shaped(arms(), 0), rank, send).plan(None) for rank in (0, 1)]
    assert plans[0].shape == plans[1].shape == Sequoia(5, 2).build() and plans[1].sizes == (5, 1)


def test_without_agreement_they_would_differ():
    batch = SimpleNamespace(sampling=False, room=9)
    plans = [Fickle(arms(), start).plan(batch).arm.label for start in (0, 1)]
    assert len(set(plans)) == 2
