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
from specplug.corpus import growing
from specplug.corpus.growing import GrowingText
from specplug.corpus.occurrences import NEAR
from specplug.corpus.shared import SharedTexts
from specplug.drafters import row_texts
from specplug.drafters.base import DraftRequest
from specplug.drafters.row_texts import RowTexts
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


def longest_of(found):
    return max((matched for matched, _ in found), default=0)


def shares_in_words(found):
    """The share of the occurrences that begin with each path; those that match much less than the longest do not count."""
    longest = longest_of(found)
    found = [one for one in found if one[0] > longest - NEAR]
    weights = [2.0 ** (matched - longest) for matched, _ in found]
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


def check_tree(trees, row, shares, shape, most, least):
    """At most `most` nodes. Equally probable ones may be chosen freely."""
    check = check_chain if shape.is_chain else check_nodes
    check(trees, row, shares, most, least)


def check_nodes(trees, row, shares, most, least):
    """The most probable paths, parents first."""
    paths = paths_of(trees, row)
    allowed = sorted((share for share in shares.values() if share >= least), reverse=True)[:most]
    assert len(set(paths)) == len(paths)
    assert [shares[path] for path in paths] == pytest.approx(allowed)
    for place, path in enumerate(paths):
        assert len(path) == 1 or path[:-1] in paths[:place]


def check_chain(trees, row, shares, most, least):
    """Each token the most probable behind those before it, as long as it is probable enough."""
    path = ()
    for node in paths_of(trees, row):
        assert node[:-1] == path and shares[node] == best_behind(path, shares) >= least
        path = node
    assert len(path) == most or best_behind(path, shares) < max(least, 1e-9)


def best_behind(path, shares):
    return max((share for other, share in shares.items() if other[:-1] == path), default=0.0)


texts = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=14), min_size=1, max_size=3)


@settings(max_examples=150, deadline=None)
@given(
    texts, st.lists(st.lists(st.integers(0, 2), min_size=2, max_size=8), max_size=2), st.data(), st.integers(1, 12),
    st.integers(1, 12), st.integers(1, 6), st.sampled_from([0.0, 0.1, 0.3, 0.7]), st.sampled_from([0.4, 1.0, 2.5, 99.0]),
)  # fmt: skip
def test_trees_against_loops_over_the_texts(rows, others, data, max_match, size, depth, least, per_match):
    """Ragged starts, pads that look like text, loops, other texts; few enough places that all of them vote."""
    starts = [data.draw(st.integers(0, 3)) for _ in rows]
    drafter = opened(Suffix(max_match=max_match, min_probability=least, per_match=per_match))
    for other in others:
        drafter._shared.add(other)
    shape = data.draw(st.sampled_from([Sequoia(size, depth), Chain(size)])).build()
    batch = batch_of(rows, starts)
    trees = drafter.draft(DraftRequest(batch, shape))
    assert trees.tokens[:, 0].tolist() == [row[-1] for row in rows]
    assert trees.laws is None and trees.num_nodes <= shape.num_nodes and int(trees.depths.max()) <= shape.depth
    for row, text in enumerate(rows):
        found = occurrences_in_words(text, others, max_match, shape.depth)
        most = min(shape.size, int(per_match * longest_of(found)))
        check_tree(trees, row, shares_in_words(found), shape, most, least)
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
        ([4, 4, 4, 4], [4] * 9),  # a loop goes on, three times as far as it has gone
        ([9, 5, 6, 7, 5, 6, 7], [5, 6, 7] * 3),
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
    assert [matched for matched, _ in GrowingText(text).find(text, len(text) - 1, 64)] == [21, 20]
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


def assert_indexed(text):
    """Its chains are those of a text that was written at once: nothing is left of what was taken back, or has been let go."""
    fresh = GrowingText(text.tokens)
    assert [{key: place - text._gone for key, place in latest.items()} for latest in text._latest] == [*fresh._latest]
    assert text._gone or text._earlier == fresh._earlier
    assert all(len(earlier) == len(text) for earlier in text._earlier)


def assert_reads(known, batch, texts):
    found = known.read(batch)
    assert [text.tokens for text in found] == texts
    for text in found:
        assert_indexed(text)


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
                known.take(name)
                assert name not in known._texts
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
    assert len(known._texts) <= 5 + len(waiting)


def test_what_the_last_round_committed_is_known_without_another_look():
    known, batch = RowTexts(), batch_of([[1, 2, 3], [4, 5]])
    known.read(batch)
    known.observe(finished_round(batch, [[6, 7, 8], [9, 10, 11]], [3, 1], (0, 1)))
    assert known.take(0)[0] == [1, 2, 3, 6, 7, 8]
    text, before = known.take(1)
    assert text == [4, 5, 9] and before == 2


def test_a_text_that_others_draft_for_is_known_from_its_first_round_and_whole_at_its_last():
    known, batch = RowTexts(), batch_of([[1, 2, 3]])
    known.observe(finished_round(batch, [[6, 7]], [2]))
    known.observe(finished_round(batch_of([[1, 2, 3, 6, 7]]), [[8, 9]], [2]))  # nothing new, and no copy
    known.observe(finished_round(batch_of([[1, 2, 3, 6, 7, 8, 9]]), [[4]], [1], (0,)))
    text, before = known.take(0)
    assert text == [1, 2, 3, 6, 7, 8, 9, 4] and before == 3


def test_a_round_seen_late_takes_nothing_back():
    known, batch = RowTexts(), batch_of([[1, 2, 3]])
    known.read(batch)
    known.read(batch_of([[1, 2, 3, 6, 7, 8, 9]]))
    known.observe(finished_round(batch, [[6, 7, 8]], [2], (0,)))
    assert known.take(0)[0] == [1, 2, 3, 6, 7, 8, 9]


def test_a_round_seen_after_its_row_has_left_brings_nothing_back():
    known, batch = RowTexts(), batch_of([[1, 2, 3]])
    known.read(batch)
    known.take(0)
    known.observe(finished_round(batch, [[6, 7, 8]], [2], (0,)))
    assert not known._texts
    assert_reads(known, batch, [[1, 2, 3]])  # and a row of that name may come again


def test_only_the_newest_tokens_are_copied(monkeypatch):
    """Of a row that is known, its last tokens; whole rows only where they are new or have missed more, not when some is taken back."""
    copied, real = [], torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: copied.append(tuple(self.shape)) or real(self))
    known, text = RowTexts(), list(range(200))
    for length, whole in ((150, [(150,)]), (155, []), (160, []), (199, [(199,)]), (190, [])):
        batch = batch_of([text[:length]])
        copied.clear()
        known.read(batch)
        assert copied == [(1,), (1,), *whole]  # where the text stands


@settings(max_examples=100, deadline=None)
@given(texts, st.data(), st.integers(1, 9))
def test_the_newest_tokens_are_the_same_from_every_device(rows, data, count):
    """In place on a CPU, also where a row's tokens do not stand beside each other, and packed into one tensor elsewhere."""
    starts = [data.draw(st.integers(0, 3)) for _ in rows]
    batch = batch_of(rows, starts)
    if data.draw(st.booleans()):
        batch = replace(batch, history=batch.history.T.contiguous().T)
    said = [(start, start + len(row), row[-count:]) for row, start in zip(rows, starts, strict=True)]
    assert row_texts.newest(batch, count) == row_texts._packed(batch, count) == said
    narrow = replace(batch, history=batch.history.int(), history_starts=batch.history_starts.int())
    assert row_texts.newest(narrow, count) == said


def test_bounds_that_are_wrong_read_nothing_beside_the_history():
    batch = batch_of([[1, 2, 3]])
    wrong = replace(batch, history_starts=torch.tensor([-5]), history_ends=torch.tensor([10**12]))
    assert row_texts.newest(wrong, 10**13) == [(-5, 10**12, batch.history[0].tolist())]


# --- texts that grow


@settings(max_examples=300, deadline=None)
@given(st.data(), st.integers(1, 12), st.integers(1, 12))
def test_a_growing_text_finds_what_loops_find(data, most, width):
    """Added to, cut and let go of in any order; the latest places only, so that a chain is sometimes longer than is looked at."""
    text, plain = GrowingText(), []
    for _ in range(data.draw(st.integers(1, 6))):
        what = data.draw(st.sampled_from(["extend", "extend", "cut", "let go"]))
        if what == "extend":
            new = data.draw(st.lists(st.integers(0, 2), max_size=30))
            text.extend(new)
            plain = plain + new
        elif what == "cut":
            length = data.draw(st.integers(0, len(plain)))
            text.cut(length)
            plain = plain[:length]
        else:
            count = data.draw(st.integers(0, len(plain)))
            text.let_go(count)
            plain = plain[count:]
        assert text.tokens == plain
        assert_indexed(text)
    ending = plain[-width:]
    found = text.find(ending, len(plain) - 1, most)
    matches = {place: agreeing(plain[: place + 1], ending, most) for place in range(len(plain) - 1)}
    wanted = sorted(((matched, place) for place, matched in matches.items() if matched), reverse=True)
    assert found == sorted(found, reverse=True) and set(found) <= set(wanted)
    if len(wanted) <= growing.LOOKED_AT:
        assert [one for one in found if one[0] > wanted[0][0] - NEAR] == [
            one for one in wanted if one[0] > wanted[0][0] - NEAR
        ]


def test_grams_of_one_hash_are_told_apart(monkeypatch):
    monkeypatch.setattr(growing, "hash", lambda tokens: 7, raising=False)
    text = [1, 2, 3, 40, 5, 6, 7, 41, 1, 2, 3]
    assert GrowingText(text).find(text, len(text) - 1, 64) == [(3, 2)]


def test_what_a_lookup_costs_does_not_grow_with_the_text(monkeypatch):
    looked, real = [], growing.agreeing
    monkeypatch.setattr(growing, "agreeing", lambda *asked: looked.append(1) or real(*asked))
    text = GrowingText([0] * 5000)
    text.find(text.tokens, len(text) - 1, 64)
    assert len(looked) <= growing.LOOKED_AT * len(growing.GRAMS)


# --- what is shared


def test_the_oldest_texts_are_forgotten_first():
    shared = SharedTexts(10)
    for first in (0, 10, 20):
        shared.add(list(range(first, first + 4)))
    assert shared._text.tokens == [10, 11, 12, 13, -1, 20, 21, 22, 23, -1] and shared.held == 8
    assert not shared.occurrences([1], 4, 2) and shared.occurrences([9, 12], 4, 2) == [(1, [13])]
    shared.add(list(range(100, 150)))
    assert shared._text.tokens == [*range(140, 150), -1]
    nothing = SharedTexts(0)
    nothing.add([1, 2, 3])
    assert not nothing.occurrences([2], 4, 2)


def test_what_is_remembered_is_bounded_however_much_was_said():
    """The chains too, not only the tokens."""
    shared, chance = SharedTexts(60), random.Random(0)
    for _ in range(200):
        shared.add([chance.randrange(1000) for _ in range(chance.randrange(2, 30))])
    assert shared.held <= 60
    kept = len(shared._text)
    assert all(len(earlier) == kept for earlier in shared._text._earlier)
    assert all(len(latest) <= kept for latest in shared._text._latest)


@pytest.mark.parametrize(("prompts", "kept"), [(False, [[3, 3, 0], [2, 2]]), (True, [[1, 2, 3, 3, 0], [2, 2]])])
def test_a_finished_text_is_left_for_others(prompts, kept):
    """What was generated: from the first root on."""
    drafter = opened(Suffix(prompts=prompts))
    batch = batch_of([[1, 2, 3], [2]])
    drafter.draft(DraftRequest(batch, chain_shape(2)))
    drafter.observe(finished_round(batch, [[3, 0], [2, 2]], [2, 1], (0, 1)))
    drafter.forget((0, 1))
    assert drafter._shared._text.tokens == [token for text in kept for token in (*text, -1)]


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
        drafter._shared.add(torch.randint(0, 4, (60,), generator=torch.Generator().manual_seed(seed)).tolist())
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
    assert not session.arms[0].drafter._texts._texts  # nothing of the finished rows is left


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
    assert spec.drafters[0]._shared.held <= 200


def test_options():
    for wrong, message in (
        ({"memory": -1}, "memory=-1 must not be negative"),
        ({"max_match": 0}, "max_match=0 must be at least 1"),
        ({"min_probability": 1.5}, "min_probability=1.5 must be from 0"),
        ({"per_match": 0.0}, "per_match=0.0 must be above 0"),
    ):
        with pytest.raises(OptionError, match=message):
            Suffix(**wrong)
    assert Suffix().required == {Need.HISTORY}
