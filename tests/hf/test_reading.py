"""What `specplug policies` counts: that trials are those of real drafting, that needles are, and how far shares are trusted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from specplug import Speculator
from specplug.drafters import DraftRequest
from specplug.kv_policies import Chooser, Full, Lambda, LayerContext, SnapKV, Streaming
from specplug.tree import TreeBatch
from specplug_hf.demo import load_pair, prompt
from specplug_hf.generation import prepare
from specplug_hf.reading.needle import AWAY, BLOCK, COPIES, CUE, LENGTH, effect, haystack, place_of, without_needle
from specplug_hf.reading.script import Greedy
from specplug_hf.reading.share import Share, difference, student
from specplug_hf.reading.trials import Trials, trials

POLICIES = {
    "full": Full(),
    "streaming": Streaming(4, 44),
    "lambda": Lambda(4, 44),
    "snapkv once": SnapKV(48, refresh=0),
    "first positions": Streaming(16, 32),  # what snapkv reads until it has chosen
}
CONTEXT, NEW = 300, 41


@pytest.fixture(scope="module")
def target() -> PreTrainedModel:
    model, _, _ = load_pair(dtype=torch.float32)
    model.generation_config.eos_token_id = None
    return model


@pytest.fixture(scope="module")
def texts() -> Tensor:
    return torch.cat([prompt(CONTEXT, index) for index in (3, 5)])


@pytest.fixture(scope="module")
def read(target: PreTrainedModel, texts: Tensor) -> Trials:
    return trials(target, texts, POLICIES, NEW, length=1)


def table(found: Trials, values: Tensor) -> dict[tuple[int, int], int]:
    return {
        (row, place): value
        for row, place, value in zip(found.rows.tolist(), found.generated.tolist(), values.tolist(), strict=True)
    }


def test_what_the_target_says_is_its_greedy_text(target: PreTrainedModel, texts: Tensor, read: Trials) -> None:
    plain = target.generate(texts, attention_mask=torch.ones_like(texts), max_new_tokens=NEW, do_sample=False)
    said = table(read, read.target)
    # rounds of two tokens: the first is asked for, the second is the bonus
    assert sorted(said) == [(row, place) for row in range(2) for place in range(1, NEW, 2)]
    assert all(token == plain[row, CONTEXT + place] for (row, place), token in said.items())


@pytest.mark.parametrize("name", POLICIES)
def test_drafts_say_what_they_say_in_a_generation_of_their_own(
    target: PreTrainedModel, texts: Tensor, read: Trials, name: str
) -> None:
    asked, said = table(read, read.drafts[name]), table(read, read.target)
    compared = 0
    for row in range(2):
        for place, draft, token in _drafted(target, texts[row : row + 1], POLICIES[name]):
            if (row, place) in asked:  # whether rounds begin there depends on what was accepted before
                assert (asked[row, place], said[row, place]) == (draft, token)
                compared += 1
    assert compared >= 16


def _drafted(target: PreTrainedModel, ids: Tensor, policy: Any) -> list[tuple[int, int, int]]:
    """Of every round of a real generation with one draft token: tokens written before it, that token, the target's."""
    found: list[tuple[int, int, int]] = []

    def watched(model: Any, input_ids: Tensor, **rest: Any) -> Any:
        spec = Speculator(drafter="self", kv_policy=policy, tree="chain:length=1", controller="fixed")
        generation = prepare(model, input_ids, spec, **rest)
        written = 1
        for finished in generation.rounds():
            if finished.trees.num_nodes > 1:
                token = int(finished.verdict.tokens(finished.trees)[0, 0])
                found.append((written, int(finished.trees.tokens[0, 1]), token))
            written += finished.commit.counts[0]
        return generation.finish()

    target.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False, custom_generate=watched
    )
    return found


def test_reading_everything_is_right_everywhere_and_reading_less_is_not(read: Trials) -> None:
    right = {name: (said == read.target).float().mean() for name, said in read.drafts.items()}
    assert right["full"] == 1
    assert all(right[name] < 1 for name in POLICIES if name != "full")


def test_what_is_chosen_is_read(read: Trials) -> None:
    """With its choice left out, `snapkv` would read the first positions instead, and say what they say."""
    assert not torch.equal(read.drafts["snapkv once"], read.drafts["first positions"])


def test_behind_a_rejected_token_nothing_is_asked(
    target: PreTrainedModel, texts: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever proposes what: what the policies are asked is the target's own text."""
    right = Greedy.chains

    def wrong(self: Greedy, request: DraftRequest) -> TreeBatch:
        trees = right(self, request)
        tokens = trees.tokens.clone()
        tokens[0, 2] = (tokens[0, 2] + 1) % 3072
        return replace(trees, tokens=tokens)

    monkeypatch.setattr(Greedy, "chains", wrong)
    found = trials(target, texts, {"full": Full()}, 13)
    plain = target.generate(texts, attention_mask=torch.ones_like(texts), max_new_tokens=13, do_sample=False)
    assert torch.equal(found.target, plain[found.rows, CONTEXT + found.generated])
    assert torch.equal(found.drafts["full"], found.target)
    # two tokens a round in the first row, both asked for; four in the second, of which three are
    assert [(found.rows == row).sum().item() for row in range(2)] == [12, 9]


@dataclass(frozen=True, slots=True)
class Noting(SnapKV):
    """Notes at which lengths it chooses."""

    noted: tuple[list[int], ...] = ([],)

    def open(self) -> Chooser:
        return _Noting(SnapKV.open(self), self.noted[0])


class _Noting:
    def __init__(self, chooser: Chooser, noted: list[int]) -> None:
        self._chooser, self._noted = chooser, noted

    def choose(self, context: LayerContext) -> Tensor:
        if context.layer == 0:
            self._noted.append(int(context.lengths[0]))
        return self._chooser.choose(context)

    def keep_rows(self, rows: Sequence[int]) -> None:
        self._chooser.keep_rows(rows)


def test_choices_are_as_old_as_in_a_generation_that_accepts_all(target: PreTrainedModel, texts: Tensor) -> None:
    policies = {name: Noting(48, refresh=refresh, noted=([],)) for name, refresh in (("once", 0), ("again", 2))}
    trials(target, texts, policies, 18)  # rounds of four tokens
    assert policies["once"].noted[0] == [CONTEXT]
    assert policies["again"].noted[0] == [CONTEXT, CONTEXT + 8, CONTEXT + 16]


def test_a_dictated_text_is_asked_for_token_by_token(target: PreTrainedModel, texts: Tensor) -> None:
    text = torch.cat([prompt(900, index)[:, -18:] for index in (7, 9)])
    found = trials(target, texts, {"full": Full(), "streaming": Streaming(4, 44)}, 18, dictated=text)
    assert sorted(table(found, found.target)) == [(r, p) for r in range(2) for p in range(1, 18) if p % 4]
    with torch.no_grad():
        said = target(torch.cat([texts, text], dim=1)).logits[:, CONTEXT - 1 : -1].argmax(-1)
    assert torch.equal(found.target, said[found.rows, found.generated])
    assert torch.equal(found.drafts["full"], found.target)
    assert not torch.equal(found.drafts["streaming"], found.target)


def test_a_haystack_has_its_needle_out_of_every_window() -> None:
    texts, passages = torch.arange(1000, 1750)[None], torch.arange(LENGTH)[None]
    place = place_of(750, budget=64)
    assert place == 750 - BLOCK - CUE - AWAY * 64
    hay = haystack(texts, passages, place)
    ids, control = hay.ids[0], hay.control[0]
    assert ids.shape == control.shape == (750,) and hay.answer[0].tolist() == list(range(CUE, LENGTH))
    assert torch.equal(ids[place : place + BLOCK], torch.arange(LENGTH).repeat(COPIES))
    assert torch.equal(ids[-CUE:], torch.arange(CUE))
    differs = (ids != control).nonzero().flatten()  # nothing but the needle
    assert differs.tolist() == list(range(place, place + BLOCK)) and int(control[:-CUE].min()) >= 1000
    assert 750 - (place + BLOCK) > 64
    assert place_of(BLOCK + CUE + AWAY * 64, budget=64) is None


def test_needles_are_told_from_guesses(target: PreTrainedModel) -> None:
    passages = torch.cat([prompt(352, index)[:, -LENGTH:] for index in (14, 17)])
    hay = haystack(torch.cat([prompt(700, index) for index in (3, 5)]), passages, place_of(700, 40) or 0)
    said = {}
    with torch.no_grad():
        for name, ids in (("with", hay.ids), ("without", hay.control)):
            said[name] = target(torch.cat([ids, hay.answer], dim=1)).logits[:, 699:-1].argmax(-1)
    assert torch.equal(without_needle(target, hay), said["without"])

    read = trials(target, hay.ids, {"full": Full()}, LENGTH - CUE, dictated=hay.answer)
    found = effect(read, hay, said["without"])
    there, absent, answer = (every[read.rows, read.generated] for every in (said["with"], said["without"], hay.answer))
    assert torch.equal(found.changed, there != absent)
    assert torch.equal(found.right, there == answer) and torch.equal(found.guessed, absent == answer)
    assert torch.equal(found.recalled, (there == answer) & (absent != answer))
    assert found.recalled.any() and (found.changed & ~found.recalled).any()  # else this text says nothing
    few = read.where(found.changed)
    assert torch.equal(few.drafts["full"], few.target) and len(few.rows) == int(found.changed.sum())


# --- how far a share is trusted


def share(*texts: tuple[int, int]) -> Share:
    """Of (trials, successes) a text."""
    found = Share()
    for number, (tried, good) in enumerate(texts):
        for trial in range(tried):
            found.add(number, trial < good)
    return found


def test_a_share_counts_trials_and_trusts_texts() -> None:
    alike = share(*[(20, 10)] * 10)
    torn = share(*[(20, 20), (20, 0)] * 5)
    assert alike.value == torn.value == 0.5 and alike.trials == torn.trials == 200
    assert alike.effective_trials == 200
    assert torn.effective_trials == pytest.approx(9)  # 1/4 over the variance of ten texts' means, 5/18 of ten
    low, high = torn.interval or (0, 0)
    t, n = 2.2622, 9  # Wilson's at a share of one half
    half = t / (1 + t * t / n) * math.sqrt(1 / (4 * n) + t * t / (4 * n * n))
    assert (low, high) == (pytest.approx(0.5 - half, abs=1e-3), pytest.approx(0.5 + half, abs=1e-3))


def test_few_texts_have_no_interval_and_certain_ones_still_have_one() -> None:
    assert share((50, 40), (50, 45)).interval is None
    assert Share().interval is None and math.isnan(Share().value)
    low, high = share((50, 50), (50, 50), (50, 50)).interval or (0, 0)
    assert 0.85 < low < 0.95 and high == 1


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """2000 surveys of eight texts, 40 trials each, whose own shares are uniform in [0.5, 0.9]: the interval of 95 % has 0.7 in it.

    Its share over 2000 has a standard error of half a percent. If trials were taken for independent it would be about 80 %.
    """
    generator = torch.Generator().manual_seed(0)
    own = 0.5 + 0.4 * torch.rand(2000, 8, generator=generator)
    good = (torch.rand(2000, 8, 40, generator=generator) < own[..., None]).sum(-1).tolist()
    held = 0
    for counts in good:
        low, high = share(*[(40, count) for count in counts]).interval or (0, 0)
        held += low <= 0.7 <= high
    assert 0.935 < held / 2000 < 0.975


def test_differences_are_taken_text_by_text() -> None:
    easy_and_hard = share((10, 9), (10, 5), (10, 2), (10, 7))
    better = share((10, 10), (10, 6), (10, 3), (10, 8))
    gap = difference(better, easy_and_hard)
    assert gap is not None and gap.mean == pytest.approx(0.1) and gap.interval == pytest.approx((0.1, 0.1))
    gap = difference(share((10, 10), (10, 6), (10, 2)), share((10, 9), (10, 6), (10, 4)))
    assert gap is not None and gap.interval is not None
    half = 4.3027 * 0.15275 / math.sqrt(3)  # of +.1, 0, -.2
    assert gap.interval == (pytest.approx(-1 / 30 - half, abs=1e-4), pytest.approx(-1 / 30 + half, abs=1e-4))
    assert difference(share((1, 1)), Share()) is None


@pytest.mark.parametrize(("degrees", "quantile"), [(2, 4.3027), (4, 2.7764), (7, 2.3646), (11, 2.2010), (23, 2.0687)])
def test_students_quantile_is_the_tables(degrees: int, quantile: float) -> None:
    assert student(degrees) == pytest.approx(quantile, abs=0.01)
