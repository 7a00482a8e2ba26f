"""What a draft has to read: when it counts, and what is learnt of its time."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from specplug.controllers import Arm
from specplug.controllers.reading import LITTLE, Reading
from specplug.drafters.base import Drafter
from specplug.host import Batch
from specplug.tree import TreeBatch
from specplug.trees import Chain

PLAIN, FORWARD = 0.010, 0.003  # seconds


def forward(_: Arm) -> float:
    return FORWARD


@dataclass
class Behind(Drafter):
    """A draft that has missed so many tokens."""

    missed: int = 0

    def draft(self, request) -> TreeBatch:
        raise AssertionError("nothing is drafted here")

    def unread(self, batch) -> int:
        return self.missed


def arm(missed: int) -> Arm:
    return Arm("model", Behind(missed), Chain(3).build())


def batch(rows: int) -> Batch:
    zeros = torch.zeros(rows, dtype=torch.int64)
    return Batch(tuple(range(rows)), zeros, zeros + 500, zeros, False, 500, 400)


def observe(reading: Reading, seconds: float, one_forward: float, levels: int) -> bool:
    """What a planner does behind a round that drafted so many levels: whether the draft had much to read."""
    unread = reading.end()
    if unread:
        reading.learn(arm(0), unread, seconds, one_forward, levels)
    return bool(unread)


def test_one_prompt_in_a_large_batch_is_reading():
    reading = Reading({}, stake=0.25)
    assert reading.seconds(arm(500), batch(20), PLAIN, forward) > FORWARD
    reading.begin(arm(500), batch(20))
    assert observe(reading, 0.02, FORWARD, 3)


def test_a_few_tokens_a_row_are_none():
    reading = Reading({}, stake=0.25)
    assert reading.seconds(arm(LITTLE * 20), batch(20), PLAIN, forward) == 0
    reading.begin(arm(LITTLE * 20), batch(20))
    assert not observe(reading, 0.02, FORWARD, 3)
    assert not reading.known


def test_a_short_text_that_takes_a_forward_says_little_of_a_long_one():
    reading = Reading({}, stake=10.0)
    reading.begin(arm(400), batch(1))
    # three levels, and a forward for the text: a quarter of the whole is left to its 400 tokens at least
    observe(reading, 4 * FORWARD + 0.004, FORWARD, 3)
    assert reading.seconds(arm(40_000), batch(1), PLAIN, forward) == pytest.approx(FORWARD + 100 * 0.004)


def test_what_forwards_are_guessed_to_take_never_makes_reading_free():
    reading = Reading({}, stake=10.0)
    reading.begin(arm(400), batch(1))
    observe(reading, 0.008, 10 * FORWARD, 3)
    assert reading.known["model"] * 400 == pytest.approx(0.002)


def test_a_round_that_came_after_has_read_nothing():
    reading = Reading({}, stake=0.25)
    reading.begin(arm(500), batch(1))
    reading.begin(arm(0), batch(1))
    assert not observe(reading, 0.02, FORWARD, 3)


def test_more_than_may_be_staked_is_refused():
    assert Reading({}, stake=0.25).seconds(arm(100_000), batch(1), PLAIN, forward) is None
