"""Suffix lookups against plain loops over the texts, the rows' texts against what a host says, and whole generations."""

import math
import random
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specplug import Need, Speculator
from specplug.corpus.shared import Indexed, SharedTexts
from specplug.drafters.base import DraftRequest
from specplug.drafters.continuations import HALVINGS
from specplug.drafters.row_texts import RECENT, RowTexts
from specplug.drafters.suffix import Suffix
from specplug.errors import OptionError
from specplug.host import Batch
from specplug.round import run_round
from specplug.tree import chain_shape, chain_trees
from specplug.trees import Chain, Sequoia
from specplug.verify import Verdict

from .test_round import ALARM, PROMPTS, generate, host_of, p_value
from .tools import joint_law, plain_greedy, table


def batch_of(rows, starts=None, names=None, sampling=False):
    starts = starts or [0] * len(rows)
    ends = [start + len(row) for row, start in zip(rows, starts, strict=True)]
    history = torch.full((len(rows), max(ends) + 2), 1)  # pads that are tokens of the text as well
    for i, (row, start) in enumerate(zip(rows, starts, strict=True)):
        history[i, start : start + len(row)] = torch.tensor(row)
    return Batch(
        rows=tuple(range(len(rows)) if names is None else names),
        roots=torch.tensor([row[-1] for row in rows]),
        lengths=torch.tensor([len(row) - 1 for row in rows]),
        seeds=torch.zeros(len(rows), dtype=torch.int64),
        sampling=sampling,
        context=max(map(len, rows)) - 1,
        room=100,
        history=history,
        history_ends=torch.tensor(ends),
        history_starts=torch.tensor(starts),
    )


def opened(drafter):
    return drafter.open(SimpleNamespace(vocab_size=1000))


def agreeing(one, other, most):
    """How many tokens `one` and `other` share at their ends."""
    count = 0
    while count < min(most, len(one), len(other)) and one[-1 - count] == other[-1 - count]:
        count += 1
    return count


def occurrences_in_words(text, others, max_match, depth):
    """(tokens that match, what follows), for every place that says what `text` ends in."""
    found = []
    for stop in range(1, len(text)):
        matched = agreeing(text[:stop], text, max_match)
        follows, known = text[stop:], len(text) - stop
        if matched:
            loop = follows * depth if matched >= known else follows
            found.append((matched, tuple(loop[:depth])))
    for other in others:
        for stop in range(1, len(other) + 1):
            matched = agreeing(other[:stop], text, max_match)
            if matched:
                found.append((matched, tuple(other[stop : stop + depth])))
    return found


def shares_in_words(found):
    """The share of the occurrences that begin with each path."""
    longest = max((matched for matched, _ in found), default=0)
    weights = [2.0 ** -min(HALVINGS, longest - matched) for matched, _ in found]
    shares = defaultdict(float)
    for weight, (_, follows) in zip(weights, found, strict=True):
        for length in range(1, len(follows) + 1):
            shares[follows[:length]] += weight
    return defaultdict(float, {path: weight / sum(weights) for path, weight in shares.items()})


def paths_of(trees, row):
    """The real nodes' paths, in the order of nodes."""
    ancestors = trees.ancestors.expand(trees.num_rows, -1, -1)[row]
    real = [True] * trees.num_nodes if trees.valid is None else trees.valid[row].tolist()
    return [tuple(trees.tokens[row][ancestors[node]].tolist()[1:]) for node in range(1, trees.num_nodes) if real[node]]


def check_tree(trees, row, shares, size, least):
    """The most probable paths, parents first. Equally probable ones may be chosen freely."""
    paths = paths_of(trees, row)
    allowed = sorted((share for share in shares.values() if share >= least), reverse=True)[:size]
    assert len(set(paths)) == len(paths)
    assert [shares[path] for path in paths] == pytest.approx(allowed)
    for place, path in enumerate(paths):
        assert len(path) == 1 or path[:-1] in paths[:place]


texts = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=14), min_size=1, max_size=3)


@settings(max_examples=150, deadline=None)
@given(
    texts, st.lists(st.lists(st.integers(0, 2), min_size=2, max_size=8), max_size=2), st.data(), st.integers(1, 12),
    st.integers(1, 12), st.integers(1, 6), st.sampled_from([0.0, 0.1, 0.3, 0.7]),
)  # fmt: skip
def test_trees_against_loops_over_the_texts(rows, others, data, max_match, size, depth, least):
    """Ragged starts, pads that look like text, loops, other texts; few enough places that all of them vote."""
    starts = [data.draw(st.integers(0, 3)) for _ in rows]
    drafter = opened(Suffix(max_match=max_match, min_probability=least))
    for other in others:
        drafter._shared.add(torch.tensor(other, dtype=torch.int32))
        drafter._shared.index()  # so that the last one is in it too
    drafter._shared._index = Indexed.of(list(drafter._shared._texts))
    shape = Sequoia(size, depth).build()
    batch = batch_of(rows, starts)
    trees = drafter.draft(DraftRequest(batch, shape))
    assert trees.tokens[:, 0].tolist() == [row[-1] for row in rows]
    assert trees.laws is None and trees.num_nodes <= shape.num_nodes and int(trees.depths.max()) <= shape.depth
    for row, text in enumerate(rows):
        check_tree(
            trees, row, shares_in_words(occurrences_in_words(text, others, max_match, shape.depth)), shape.size, least
        )
    check_confidence(drafter, batch, shape, trees, rows, others)


def check_confidence(drafter, batch, shape, trees, rows, others):
    explained = drafter.draft(DraftRequest(batch, shape, explain=True))
    assert torch.equal(explained.tokens, trees.tokens)
    for row, text in enumerate(rows):
        shares = shares_in_words(occurrences_in_words(text, others, drafter.max_match, shape.depth))
        shares[()] = 1.0
        own = [] if explained.confidence is None else explained.confidence[row]
        own = [float(p) for p in own if not math.isnan(p)]
        assert own == pytest.approx([shares[path] / shares[path[:-1]] for path in paths_of(trees, row)], rel=1e-5)


def test_the_proposal_passes_every_check_of_the_core():
    """Trees of different topologies in one batch, one of them empty: parents, depths, ancestors, children agree."""
    from specplug.controllers.base import Arm, Plan
    from specplug.proposal import check_proposal

    rows = [[1, 2, 3, 1, 2, 4, 1, 2, 5, 1, 2], [7, 8, 9], [5, 5, 6, 5, 5, 7, 5]]
    drafter = opened(Suffix())
    drafter.checked = True
    shape = Sequoia(9, 4).build()
    trees = drafter.draft(DraftRequest(batch_of(rows), shape))
    check_proposal(trees, batch_of(rows), Plan(Arm("suffix", drafter, shape), shape), 1000)
    assert trees.valid is not None and not trees.valid[1, 1:].any()
    assert trees.children.shape[2] == 3  # padding is no child


@pytest.mark.parametrize(
    ("text", "continuation"),
    [
        ([5, 6, 7, 8, 5, 6, 7], [8, 5, 6, 7]),
        ([1, 2, 3], []),
        ([4, 4, 4, 4], [4] * 10),  # a loop goes on
        ([9, 5, 6, 7, 5, 6, 7], [5, 6, 7] * 3 + [5]),
    ],
)
def test_examples(text, continuation):
    trees = opened(Suffix()).draft(DraftRequest(batch_of([text]), Chain(10).build()))
    assert trees.tokens[0, 1:].tolist() == continuation
    assert trees.shape is not None  # a chain is verified and committed as one


def test_a_long_match_beats_many_newer_short_ones():
    """More places than are compared in full: the longest at a glance are."""
    text = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 42] + [10, 43] * 60 + [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    trees = opened(Suffix()).draft(DraftRequest(batch_of([text]), Chain(1).build()))
    assert trees.tokens[0, 1:].tolist() == [42]


def test_matches_longer_than_a_glance_are_told_apart():
    common = list(range(10, 30))
    text = [1, *common, 88, 2, *common, 77, 1, *common]
    trees = opened(Suffix()).draft(DraftRequest(batch_of([text]), Chain(1).build()))
    assert trees.tokens[0, 1:].tolist() == [88]
    trees = opened(Suffix(max_match=8)).draft(DraftRequest(batch_of([text]), Sequoia(2, 1).build()))
    assert sorted(trees.tokens[0, 1:].tolist()) == [77, 88]  # alike in what is compared


# --- the rows' texts


def finished_round(batch, tokens, counts, finished=()):
    """A round that accepted a chain of all `tokens` [B, P] but the last, the host keeping `counts` of them."""
    tokens = torch.tensor(tokens)
    trees = chain_trees(batch.roots, tokens[:, :-1])
    path = torch.arange(tokens.shape[1]).expand(len(tokens), -1)
    verdict = Verdict(path, torch.full((len(tokens),), tokens.shape[1] - 1), tokens[:, -1])
    return SimpleNamespace(
        batch=batch, trees=trees, verdict=verdict, commit=SimpleNamespace(num_new=counts, finished=finished)
    )


def assert_reads(known, batch, texts):
    found, lengths = known.read(batch)
    for row, text in enumerate(texts):
        assert found[row, 0] == -1
        assert found[row, 1 : 1 + int(lengths[row])].tolist() == text
        assert (found[row, 1 + len(text) :] == -1).all()


@pytest.mark.parametrize("seed", range(8))
def test_texts_follow_the_host_whatever_it_does(seed):
    """Rows that join, leave, pause, grow by a little or a lot, are cut or become another text; rounds seen late or never."""
    chance = random.Random(seed)
    known, texts, waiting = RowTexts(), {}, []
    for step in range(120):
        for name in list(texts):
            what = chance.random()
            if what < 0.03:
                texts[name] = texts[name][: max(1, len(texts[name]) - chance.randrange(60))]
            elif what < 0.05:
                texts[name] = [chance.randrange(50) for _ in range(chance.randrange(1, 90))]
            elif what < 0.08:
                del texts[name]
                before = known.take(name)[0]
                assert name not in known._slots and before.ndim == 1
        while len(texts) < chance.randrange(1, 5):
            texts[f"{step}.{len(texts)}"] = [chance.randrange(50) for _ in range(chance.randrange(1, 80))]
        chosen = [name for name in texts if chance.random() < 0.7] or list(texts)[:1]
        batch = batch_of([texts[n] for n in chosen], [chance.randrange(4) for _ in chosen], chosen)
        if chance.random() < 0.8:
            assert_reads(known, batch, [texts[n] for n in chosen])
        new = [[chance.randrange(50) for _ in range(5 if chance.random() < 0.9 else 50)] for _ in chosen]
        new = [row[: min(map(len, new))] for row in new]
        counts = [chance.randrange(1, len(row) + 1) for row in new]
        waiting.append(finished_round(batch, new, counts, tuple(chosen) if chance.random() < 0.5 else ()))
        for name, row, count in zip(chosen, new, counts, strict=True):
            texts[name] = texts[name] + row[:count]
        while len(waiting) > chance.randrange(3):
            known.observe(waiting.pop(0))
    assert len(known._slots) <= 5 + len(waiting)


def test_what_the_last_round_committed_is_known_without_another_look():
    known, batch = RowTexts(), batch_of([[1, 2, 3], [4, 5]])
    known.read(batch)
    known.observe(finished_round(batch, [[6, 7, 8], [9, 10, 11]], [3, 1], (0, 1)))
    assert known.take(0)[0].tolist() == [1, 2, 3, 6, 7, 8]
    text, before = known.take(1)
    assert text.tolist() == [4, 5, 9] and before == 2


def test_a_text_that_others_draft_for_is_known_from_its_first_round_and_whole_at_its_last():
    known, batch = RowTexts(), batch_of([[1, 2, 3]])
    known.observe(finished_round(batch, [[6, 7]], [2]))
    known.observe(finished_round(batch_of([[1, 2, 3, 6, 7]]), [[8, 9]], [2]))  # nothing new, and no copy
    known.observe(finished_round(batch_of([[1, 2, 3, 6, 7, 8, 9]]), [[4]], [1], (0,)))
    text, before = known.take(0)
    assert text.tolist() == [1, 2, 3, 6, 7, 8, 9, 4] and before == 3


def test_a_round_seen_late_takes_nothing_back():
    known, batch = RowTexts(), batch_of([[1, 2, 3]])
    known.read(batch)
    known.read(batch_of([[1, 2, 3, 6, 7, 8, 9]]))
    known.observe(finished_round(batch, [[6, 7, 8]], [2], (0,)))
    assert known.take(0)[0].tolist() == [1, 2, 3, 6, 7, 8, 9]


def test_a_round_seen_after_its_row_has_left_brings_nothing_back():
    known, batch = RowTexts(), batch_of([[1, 2, 3]])
    known.read(batch)
    known.take(0)
    known.observe(finished_round(batch, [[6, 7, 8]], [2], (0,)))
    assert not known._slots
    assert_reads(known, batch, [[1, 2, 3]])  # and a row of that name may come again


def test_only_the_newest_tokens_are_copied(monkeypatch):
    """Of a row that is known, `RECENT` columns; whole rows only where they are new or have missed more."""
    copied, real = [], torch.Tensor.to
    monkeypatch.setattr(
        torch.Tensor, "to", lambda self, *a, **k: copied.append(tuple(self.shape)) or real(self, *a, **k)
    )
    known, text = RowTexts(), list(range(200))
    for length, whole in ((150, [(150,)]), (155, []), (160, []), (199, [(199,)])):
        copied.clear()
        known.read(batch_of([text[:length]]))
        assert copied == [(1, RECENT), *whole]


# --- what is shared


def test_the_oldest_texts_are_forgotten_first():
    shared = SharedTexts(10)
    for first in (0, 10, 20):
        shared.add(torch.arange(first, first + 4, dtype=torch.int32))
    assert shared.index().text.tolist() == [-1, 10, 11, 12, 13, -1, 20, 21, 22, 23, -1]
    shared.add(torch.arange(100, 150, dtype=torch.int32))
    assert shared.index().text.tolist() == [-1, *range(140, 150), -1]
    assert SharedTexts(0).index().text.tolist() == [-1]


def test_the_index_is_made_anew_when_an_eighth_is_new():
    shared = SharedTexts(1000)
    shared.add(torch.arange(100, dtype=torch.int32))
    first = shared.index()
    shared.add(torch.arange(5, dtype=torch.int32))
    assert shared.index() is first
    shared.add(torch.arange(9, dtype=torch.int32))
    assert len(shared.index().text) == 118


def test_candidates_are_the_latest_places_of_a_token():
    index = Indexed.of([torch.tensor([3, 4, 3, 3], dtype=torch.int32), torch.tensor([5, 3], dtype=torch.int32)])
    rows, places = index.candidates(torch.tensor([3, 9, 4], dtype=torch.int32), 3)
    assert rows.tolist() == [0, 0, 0, 2] and places.tolist() == [3, 4, 7, 2]


@pytest.mark.parametrize(("prompts", "kept"), [(False, [[3, 3, 0], [2, 2]]), (True, [[1, 2, 3, 3, 0], [2, 2]])])
def test_a_finished_text_is_left_for_others(prompts, kept):
    """What was generated: from the first root on."""
    drafter = opened(Suffix(prompts=prompts))
    batch = batch_of([[1, 2, 3], [2]])
    drafter.draft(DraftRequest(batch, chain_shape(2)))
    drafter.observe(finished_round(batch, [[3, 0], [2, 2]], [2, 1], (0, 1)))
    drafter.forget((0, 1))
    assert [text.tolist() for text in drafter._shared._texts] == kept


def test_requests_learn_from_each_other_and_sampled_ones_only_if_told():
    first = opened(drafter := Suffix())
    first.draft(DraftRequest(batch_of([[1, 2, 3, 4, 5]]), chain_shape(2)))
    first.draft(DraftRequest(batch_of([[1, 2, 3, 4, 5, 6, 7, 8]]), chain_shape(2)))
    first.forget((0,))
    request = DraftRequest(batch_of([[9, 5, 6]]), chain_shape(2))
    assert opened(drafter).draft(request).tokens.tolist() == [[6, 7, 8]]
    sampled = replace(request, batch=batch_of([[9, 5, 6]], sampling=True))
    assert opened(drafter).draft(sampled).num_nodes == 1
    drafter.sampled = True
    assert opened(drafter).draft(sampled).num_nodes == 3
    assert opened(Suffix(memory=0)).draft(request).num_nodes == 1


# --- whole generations


@pytest.mark.parametrize(
    "tree", ["chain:length=4", "sequoia:size=9,depth=4", "kary:branch=2,depth=2", "chain:length=0"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_greedy_equals_plain_decoding(tree, dtype):
    """Twice with one Speculator: the second time others' texts are there, and more is accepted."""
    target, limits = table(6, 1, dtype=dtype), [40, 5, 1, 23]
    spec = Speculator(drafter=Suffix(), tree=tree, controller="fixed")
    lengths = []
    for _ in range(2):
        host = host_of(target, PROMPTS, new_tokens=limits, starts=[0, 2, 1, 3])
        lengths.append(generate(host, spec).stats.accepted_length)
        for row, (prompt, limit) in enumerate(zip(PROMPTS, limits, strict=True)):
            assert host.result(row) == plain_greedy(target, prompt, limit)
    assert lengths[1] > lengths[0] or tree == "chain:length=0"


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("tree", ["chain:length=3", "sequoia:size=6,depth=3"])
def test_sampling_follows_the_exact_law_of_three_tokens(tree, shared):
    """n = 3000 rows fixed beforehand; a lossless sampler fails with probability 1e-5 (seeds are fixed: once)."""
    target, prompt = table(4, 2, 1.0), (0, 1, 2, 0, 1)
    drafter = Suffix(min_probability=0.0, sampled=shared)
    for seed in range(4):  # texts of other seeds
        drafter._shared.add(torch.randint(0, 4, (60,), generator=torch.Generator().manual_seed(seed)).int())
    host = host_of(target, [prompt] * 3000, sampling=True, new_tokens=5)
    session = generate(host, Speculator(drafter=drafter, tree=tree, controller="fixed"))
    assert session.stats.accepted > 500
    tokens = host.text[:, len(prompt) : len(prompt) + 3]
    counts = torch.bincount(tokens[:, 0] * 16 + tokens[:, 1] * 4 + tokens[:, 2], minlength=64)
    assert p_value(counts, joint_law(target, prompt, 3)) > ALARM


@pytest.mark.parametrize("sampling", [False, True])
def test_rows_join_leave_and_pause_and_rounds_are_seen_late(sampling):
    target = table(6, 1)
    spec = Speculator(drafter=Suffix(), tree="sequoia:size=6,depth=3", controller="fixed")
    calm = host_of(target, PROMPTS, sampling=sampling, new_tokens=30)
    generate(calm, spec)
    busy = host_of(target, PROMPTS, sampling=sampling, new_tokens=30)
    session, last = spec.open(busy), None
    generator = torch.Generator().manual_seed(1)
    while bool((waiting := busy.ends < busy.stops).any()):
        chosen = waiting & (torch.rand(4, generator=generator) < 0.5)
        busy.active = torch.nonzero(chosen if bool(chosen.any()) else waiting).flatten().flip(0)
        newest = run_round(busy, session)
        if last is not None:
            session.observe(last)
        last = newest
    session.observe(last)
    assert [busy.result(row) for row in range(4)] == [calm.result(row) for row in range(4)]
    assert not session.arms[0].drafter._texts._slots  # nothing of the finished rows is left


def test_one_drafter_serves_many_threads():
    target = table(6, 1)
    spec = Speculator(drafter=Suffix(memory=200), tree="sequoia:size=6,depth=3", controller="fixed")

    def work(i):
        host = host_of(target, [PROMPTS[i % 4]], new_tokens=40)
        generate(host, spec)
        return host.result(0)

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(work, range(16)))
    assert results == [plain_greedy(target, PROMPTS[i % 4], 40) for i in range(16)]
    assert spec.drafters[0]._shared._held <= 200


def test_options():
    for wrong, message in (
        ({"memory": -1}, "memory=-1 must not be negative"),
        ({"max_match": 0}, "max_match=0 must be at least 1"),
        ({"min_probability": 1.5}, "min_probability=1.5 must be from 0"),
    ):
        with pytest.raises(OptionError, match=message):
            Suffix(**wrong)
    assert Suffix().required == {Need.HISTORY}
