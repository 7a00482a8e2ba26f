"""What a planner may spend on looking at its options."""

from specplug.controllers import Goodput, Memory
from specplug.controllers import goodput as module
from specplug.controllers.thinking import BURST, Thinking

from .test_controllers import GOOD_MODEL, HOST, batch_of, finished_round


def test_a_look_is_paid_for_by_the_rounds_before_it() -> None:
    thinking = Thinking()
    assert thinking.affords  # the first one
    thinking.spend(0.3)
    assert not thinking.affords
    for _ in range(29):
        thinking.earn(1.0, 0.01)
    assert not thinking.affords
    thinking.earn(1.01, 0.01)
    assert thinking.affords


def test_no_more_looks_are_saved_up_than_a_new_text_needs() -> None:
    thinking = Thinking()
    thinking.spend(0.25)
    thinking.earn(1e6, 0.01)
    looks = 0
    while thinking.affords and looks < 100:
        thinking.spend(0.25)
        looks += 1
    assert looks == BURST + 1


def looks_of(seconds_a_look: float, monkeypatch) -> int:  # type: ignore[no-untyped-def]
    """Looks in 200 rounds of about a second that all disappoint, on a clock on which a look takes so long."""
    now = [0.0]

    def clock() -> float:
        now[0] += seconds_a_look
        return now[0]

    monkeypatch.setattr(module, "perf_counter", clock)
    goodput, looks = Goodput().open(GOOD_MODEL.arms(), HOST, Memory()), [0]
    look = goodput._look

    def counted(batch, situation):  # type: ignore[no-untyped-def]
        looks[0] += 1
        return look(batch, situation)

    goodput._look = counted
    for number in range(200):
        batch = batch_of(1, 100 + number, 500)
        plan = goodput.plan(batch)
        goodput.observe(finished_round(plan, batch, [[0]], [1], GOOD_MODEL.seconds(plan, 1)))
    return looks[0]


def test_dear_looks_are_rare_and_cheap_ones_are_not(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    assert looks_of(1e-6, monkeypatch) > 30
    assert looks_of(5.0, monkeypatch) <= 200 * 1.3 * Goodput().thought / 5.0 + BURST + 1
