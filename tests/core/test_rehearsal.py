"""Rehearsal: a lookup tried on what is already written, beside whatever is at work."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from specplug.acceptance import Acceptance
from specplug.controllers import Arm, Goodput, Memory
from specplug.controllers import rehearsal as module
from specplug.controllers.rehearsal import SHARE, SPAN, Rehearsal
from specplug.controllers.thinking import BURST, Thinking
from specplug.drafters import NoDraft, PromptLookup
from specplug.drafters.base import DraftRequest
from specplug.host import Batch, Commit
from specplug.outcome import outcome_of
from specplug.round import Round, Seconds
from specplug.tree import roots_only
from specplug.trees import Chain
from specplug.verify import Targets, verify_greedy

LOOKUP = Arm("lookup", PromptLookup(), Chain(6).build())
PLAIN = Arm("none", NoDraft(), Chain(0).build())


def batch_of(texts, ends=None):
    """Rows that have written the first `ends` tokens of `texts`."""
    ends = ends or [len(text) for text in texts]
    width = max(map(len, texts))
    history = torch.tensor([[*text, *[0] * (width - len(text))] for text in texts])
    last = torch.tensor(ends)
    return Batch(
        rows=tuple("abcdefgh"[: len(texts)]),
        roots=history.gather(1, last[:, None] - 1).squeeze(1),
        lengths=last - 1,
        seeds=torch.zeros(len(texts), dtype=torch.int64),
        sampling=False,
        context=max(ends) - 1,
        room=1000,
        history=history,
        history_ends=last,
        history_starts=torch.zeros(len(texts), dtype=torch.int64),
    )


def plain_round(batch, counts, arm=PLAIN, seconds=1.0):
    plan = SimpleNamespace(arm=arm, shape=arm.shape, sizes=None, predicted=None)
    trees = roots_only(batch.roots)
    verdict = SimpleNamespace(accepted=[0] * batch.num_rows)
    return SimpleNamespace(
        batch=batch,
        plan=plan,
        commit=Commit(counts),
        seconds=Seconds(0.0, seconds, 0.0, 0.0),
        trees=trees,
        verdict=verdict,
    )


def plain_outcome(batch, counts, arm=PLAIN):
    return outcome_of(plain_round(batch, counts, arm))


def next_round(rehearsal, batch, seen):
    """What was rehearsed before a round or behind it."""
    at_once = rehearsal.plan(batch, lambda *_: seen)
    return at_once + rehearsal.observe(plain_outcome(batch, [1] * batch.num_rows), lambda *_: seen)


def rehearse(texts, written, arm=LOOKUP):
    """What is seen of `arm` once the rows have written the last `written` tokens of their texts by other means."""
    batch, seen = batch_of(texts), Acceptance()
    rehearsal = Rehearsal([arm, PLAIN], Thinking())
    rehearsal.observe(plain_outcome(batch, written), lambda *_: seen)
    return seen, next_round(rehearsal, batch, seen)


def test_a_text_that_repeats_itself_is_all_taken():
    seen, looked = rehearse([[*range(10)] * 5], [20])
    assert looked == [(LOOKUP, True)]
    assert seen.tried[0] > 3.9  # from four places
    assert seen.taken == seen.tried
    assert seen.tried[6] == 0.0  # as deep as the arm's tree
    assert seen.proposing == 1.0


def test_a_text_without_repetition_is_a_failure_to_propose():
    seen, looked = rehearse([list(range(40))], [20])
    assert looked == [(LOOKUP, False)]
    assert seen.tried[0] > 3.9 and seen.taken[0] == 0.0
    assert seen.proposing < 0.7


def test_what_the_text_does_not_reach_yet_has_neither_failed_nor_been_taken():
    """Eight tokens, four places: 8, 6, 4 and 2 tokens from the end."""
    seen, _ = rehearse([[*range(10)] * 5], [8])
    fading = seen.fading
    assert seen.tried[1] == pytest.approx(1 + fading + fading**2 + fading**3)
    assert seen.tried[3] == pytest.approx(fading + fading**2 + fading**3)
    assert seen.tried[5] == pytest.approx(fading**2 + fading**3)


def test_counts_are_those_of_real_rounds():
    """Every place by hand: what a lookup proposes there, and how far the text goes on like it."""
    generator = torch.Generator().manual_seed(3)
    texts = torch.randint(0, 3, (2, 60), generator=generator).tolist()
    seen, _ = rehearse(texts, [16, 12])
    hand = Acceptance()
    for back in ((16, 12), (12, 9), (8, 6), (4, 3)):
        hand._fade()
        for row, (text, ago) in enumerate(zip(texts, back, strict=True)):
            past = batch_of([text[: len(text) - ago]])
            proposed = LOOKUP.drafter.draft(SimpleNamespace(batch=past, shape=LOOKUP.shape)).tokens[0, 1:].tolist()
            real = text[len(text) - ago :]
            agreed = next((n for n, (p, r) in enumerate(zip(proposed, real, strict=False)) if p != r), len(proposed))
            shape = Chain(min(LOOKUP.shape.depth, ago)).build()
            hand._count("ab"[row], shape, shape.size, min(agreed, ago))
    assert seen.tried == pytest.approx(hand.tried)
    assert seen.taken == pytest.approx(hand.taken)
    assert 0 < seen.taken[0] < seen.tried[0]
    assert seen.rows == hand.rows


class WithoutHindsight(PromptLookup):
    """Has to draft for the past."""

    def hindsight(self, batch, ago, shape):
        return None


@pytest.mark.parametrize("vocabulary", [2, 3, 20, 2**21])
def test_in_hindsight_a_lookup_says_what_drafting_would_have_come_to(vocabulary):
    """A vocabulary of two million tokens has no character for each: there it is drafted, too."""
    generator = torch.Generator().manual_seed(5)
    drafting = Arm("lookup", WithoutHindsight(), LOOKUP.shape)
    for lengths, written in (((60, 40, 50), (16, 9, 0)), ((30,), (29,)), ((12, 9), (12, 40))):
        texts = [torch.randint(vocabulary - 2, vocabulary, (n,), generator=generator).tolist() for n in lengths]
        told, _ = rehearse(texts, list(written))
        drafted, _ = rehearse(texts, list(written), arm=drafting)
        assert told == drafted and told.tried[0] > 0


def test_rows_that_wrote_nothing_are_not_judged():
    seen, _ = rehearse([[*range(10)] * 5, list(range(40))], [10, 0])
    assert set(seen.rows.counts) == {"a"}
    assert seen.taken == seen.tried


def test_nothing_is_rehearsed_before_enough_is_written_nor_by_what_was_there_itself():
    assert rehearse([[*range(10)] * 5], [SPAN - 1])[1] == []
    batch, seen = batch_of([[*range(10)] * 5]), Acceptance()
    rehearsal = Rehearsal([LOOKUP, PLAIN], Thinking())
    rehearsal.observe(plain_outcome(batch, [SPAN]), lambda *_: seen)
    rehearsal.observe(plain_outcome(batch, [3], arm=LOOKUP), lambda *_: seen)
    assert next_round(rehearsal, batch, seen) == []


def test_what_was_rehearsed_is_not_rehearsed_again():
    batch, seen = batch_of([[*range(10)] * 5]), Acceptance()
    rehearsal = Rehearsal([LOOKUP, PLAIN], Thinking())
    looked = []
    for _ in range(3 * SPAN):
        looked += next_round(rehearsal, batch, seen)
    assert len(looked) == 2


@pytest.mark.parametrize(("seconds", "most"), [(1e-6, 40), (4.0, 40 * SPAN * SHARE / 4.0 + BURST + 1)])
def test_dear_rehearsals_are_rare(seconds, most, monkeypatch):
    """Rounds of a second, on a clock on which a rehearsal takes so long."""
    now = [0.0]

    def clock():
        now[0] += seconds
        return now[0]

    monkeypatch.setattr(module, "perf_counter", clock)
    batch, looked = batch_of([[*range(10)] * 5]), []
    rehearsal = Rehearsal([LOOKUP, PLAIN], Thinking())
    for _ in range(40 * SPAN):
        looked += next_round(rehearsal, batch, Acceptance())
    assert 2 <= len(looked) <= most
    assert seconds > 1 or len(looked) > 38


def test_what_is_known_at_once_is_told_before_the_round_and_what_waits_for_the_device_behind_it():
    class Drafting(PromptLookup):
        def hindsight(self, batch, known, shape):
            return None

    for lookup, before in ((PromptLookup(), True), (Drafting(), False)):
        arm, batch, seen = replace(LOOKUP, drafter=lookup), batch_of([[*range(10)] * 5]), Acceptance()
        rehearsal = Rehearsal([arm, PLAIN], Thinking())
        rehearsal.observe(plain_outcome(batch, [SPAN]), lambda *_, seen=seen: seen)
        at_once = rehearsal.plan(batch, lambda *_, seen=seen: seen)
        assert at_once == ([(arm, True)] if before else []) and rehearsal.begun == (not before)
        late = rehearsal.observe(plain_outcome(batch, [1]), lambda *_, seen=seen: seen)
        assert late == ([] if before else [(arm, True)]) and not rehearsal.begun


def test_it_says_for_how_long_nothing_is_to_be_rehearsed():
    batch = batch_of([[*range(10)] * 5])
    rehearsal = Rehearsal([LOOKUP, PLAIN], Thinking())
    assert rehearsal.waits(PLAIN, batch) == SPAN and rehearsal.waits(LOOKUP, batch) is None
    rehearsal.observe(plain_outcome(batch, [3]), lambda *_: Acceptance())
    assert rehearsal.waits(PLAIN, batch) == SPAN - 3
    assert rehearsal.waits(PLAIN, replace(batch, history=None)) is None
    rehearsal.observe(plain_outcome(batch, [SPAN]), lambda *_: Acceptance())
    assert rehearsal.waits(PLAIN, batch) <= 0
    rehearsal._time.spend(1.0)
    assert rehearsal.waits(PLAIN, batch) == SPAN  # what cannot be afforded is not asked for every round


def test_rows_that_left_are_forgotten():
    batch, seen = batch_of([[*range(10)] * 5]), Acceptance()
    rehearsal = Rehearsal([LOOKUP, PLAIN], Thinking())
    rehearsal.observe(plain_outcome(batch, [SPAN]), lambda *_: seen)
    rehearsal.forget(["a"])
    assert next_round(rehearsal, batch, seen) == []


def test_a_host_without_history_has_no_rehearsals():
    batch = replace(batch_of([[1, 2, 3]]), history=None, history_ends=None, history_starts=None)
    rehearsal = Rehearsal([LOOKUP], Thinking())
    rehearsal.observe(plain_outcome(batch, [SPAN]), lambda *_: Acceptance())
    assert next_round(rehearsal, batch, Acceptance()) == []


def write(text, start, controller):
    """Rounds in which exactly `text` is written from its token `start` on: who drafted, and how many tokens came of it."""
    end, rounds = start, []
    while end < len(text) - 10:
        batch = batch_of([text], [end])
        plan = controller.plan(batch)
        trees = plan.arm.drafter.draft(DraftRequest(batch, plan.shape))
        verdict = verify_greedy(trees, torch.tensor(text)[end + trees.depths])
        new = int(verdict.num_accepted) + 1
        seconds = Seconds(0.0, 0.7 + 0.3 * trees.num_nodes, 0.0, 0.0)
        controller.observe(Round(batch, plan, trees, Targets(), verdict, Commit([new]), seconds))
        rounds.append((plan.arm.label, new))
        end += new
    return rounds


@pytest.mark.parametrize("repeats", [True, False])
def test_goodput_turns_to_a_lookup_that_it_never_ran(repeats):
    """Nothing may be spent on trials: what is known of the lookup comes from plain decoding alone."""
    random = torch.randint(0, 8, (200,), generator=torch.Generator().manual_seed(0)).tolist()
    text = random[:60] + (random[:60] * 3 if repeats else random[60:])
    memory, host = Memory(), SimpleNamespace(key="host")
    never = 10**6  # looks at everything as a matter of course: it is what was rehearsed that is looked at
    goodput = Goodput(allowance=0.0, credit=0.0, reinvest=0.0, interval=never).open([LOOKUP, PLAIN], host, memory)
    rounds = write(text, 62, goodput)
    assert [label for label, _ in rounds[:SPAN]] == ["none"] * SPAN
    if repeats:
        assert "lookup" in [label for label, _ in rounds[: 2 * SPAN]]
        assert max(new for _, new in rounds) > 5
    else:
        assert sum(label == "lookup" for label, _ in rounds) < 0.2 * len(rounds)
        learnt = memory.of(host, [LOOKUP, PLAIN])
        assert max(learnt.waited(situation, "lookup") for situation in learnt.rounds) < 2 * SPAN


def test_goodput_forgets_the_rows_that_left():
    host = SimpleNamespace(key="host")
    goodput = Goodput().open([LOOKUP, PLAIN], host, Memory())
    batch = batch_of([[*range(10)] * 5])
    goodput.observe(plain_round(batch, [SPAN]))
    goodput.forget(["a"])
    for _ in range(2):
        goodput.plan(batch)
        goodput.observe(plain_round(batch, [0]))
    assert goodput._beliefs.of(LOOKUP, False).samples == 0
