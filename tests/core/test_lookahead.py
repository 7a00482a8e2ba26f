"""`lookahead`: against a reference in plain loops, lossless to the last digit, within every tree, however rows come and go."""

from collections import defaultdict

import pytest
import torch
from scipy import stats

from specplug import Speculator
from specplug.drafters.base import DraftRequest
from specplug.drafters.lookahead import Lookahead
from specplug.drafters.paths import each_path_once, lineage_of
from specplug.errors import OptionError, UnsupportedError
from specplug.needs import Need
from specplug.ragged import limited
from specplug.round import run_round
from specplug.tree import TreeShape
from specplug.trees import Chain

from .tools import TableHost, joint_law, plain_greedy, table

OFFERS = frozenset({Need.HISTORY, Need.TARGET_PASS})
PROMPTS = [[0, 1], [3, 3, 2, 3, 3, 2], [1, 2, 3, 4, 5], [4, 0, 4, 0, 4, 1, 2, 0, 3, 3]]
OPTIONS = [
    dict(),
    dict(window=3, ngram=3, guesses=2),
    dict(window=1, ngram=2, guesses=1),
    dict(window=2, ngram=5, guesses=3, memory=4),
    dict(window=5, ngram=2, guesses=4),
]
ALARM = 1e-5


def host_of(target, prompts=PROMPTS, **options):
    return TableHost(target, target, prompts, capabilities=OFFERS, **options)


def generate(host, drafter, late=0, **options):
    """The session after all rounds; each is observed `late` rounds later."""
    session = Speculator(drafter=drafter, **{"controller": "fixed"} | options).open(host)
    waiting = []
    while len(host.active):
        waiting.append(run_round(host, session))
        if len(waiting) > late:
            session.observe(waiting.pop(0))
    for finished in waiting:
        session.observe(finished)
    return session


# --- against the method in plain loops


class Reference:
    """One row of lookahead decoding, read off the paper: lists and loops."""

    def __init__(self, text, window, ngram, guesses, memory):
        self.columns, self.levels, self.guesses, self.memory = window, ngram - 1, guesses, memory
        span = self.levels + self.columns - 2
        padded = [text[0]] * span + text
        self.window = [[padded[len(padded) - 1 - span + i + j] for i in range(window)] for j in range(self.levels)]
        self.pool = []  # n-grams, the newest first, None where one became new again

    def ahead(self, root):
        """Tokens from behind the root to each node (level, column) of the window."""
        self.window[0][0] = root
        return {
            (j, i): tuple(self.window[0][1 : i + 1] + [self.window[level][i] for level in range(1, j + 1)])
            for j in range(self.levels)
            for i in range(self.columns)
        }

    def found(self, root):
        return [ngram[1:] for ngram in self.pool if ngram is not None and ngram[0] == root][: self.guesses]

    def proposed(self, root):
        """Every path of the tree, the root's own (empty) among them."""
        whole = [*self.ahead(root).values(), *self.found(root)]
        return {path[:length] for path in whole for length in range(len(path) + 1)}

    def learn(self, root, before, target):
        paths, fresh, chosen = self.ahead(root), [], []
        for i in range(self.columns):
            text = (before, root, *paths[self.levels - 1, i])
            chosen.append(int(target[text[-2], text[-1]].argmax()))
            ngram = (*(self.window[j][i] for j in range(self.levels)), chosen[-1])
            fresh.append(None if ngram in fresh else ngram)
        known = [None if ngram in fresh else ngram for ngram in self.pool]
        self.pool = (fresh + known)[: self.memory]
        self.window = [*map(list, self.window[1:]), chosen]


def paths_of(trees, row):
    """Tokens from behind the root to each real node, with how often each stands there."""
    counts = defaultdict(int)
    paths = [()]
    for node in range(trees.num_nodes):
        if node:
            paths.append((*paths[int(trees.parents[row, node])], int(trees.tokens[row, node])))
        if trees.valid is None or trees.valid[row, node]:
            counts[paths[node]] += 1
    return counts


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("seed", [1, 2])
def test_every_proposal_is_the_reference_s(options, seed):
    """Of rows that join, pause and come back, in batches of any order; every path stands there once."""
    target, rounds = table(12, seed), 40
    host = host_of(target, new_tokens=1000, starts=[0, 2, 1, 3])
    generator = torch.Generator().manual_seed(seed)
    session = Speculator(drafter=Lookahead(**options), controller="fixed").open(host)
    drafter = session.arms[0].drafter
    settings = {name: getattr(drafter, name) for name in ("window", "ngram", "guesses", "memory")}
    references, guessed = {}, 0
    for _ in range(rounds):
        order = torch.randperm(4, generator=generator)
        host.active = order[: 1 + int(torch.randint(4, (1,), generator=generator))]
        texts = {row: host.text[row, host.begins[row] : host.ends[row]].tolist() for row in host.active.tolist()}
        finished = run_round(host, session)
        for place, row in enumerate(finished.batch.rows):
            text = texts[row]
            reference = references.setdefault(row, Reference(text, **settings))
            assert paths_of(finished.trees, place) == dict.fromkeys(reference.proposed(text[-1]), 1)
            guessed += len(reference.found(text[-1]))
            reference.learn(text[-1], text[-2], target)
        session.observe(finished)
    assert len(references) == 4 and guessed  # or something was not tested
    for row, prompt in enumerate(PROMPTS):
        assert host.result(row) == plain_greedy(target, prompt, len(host.result(row)))


def test_what_is_left_behind_by_a_row_is_no_other_row_s():
    """A finished row's place is given to a new one, which begins anew."""
    target = table(12, 1)
    drafter = Lookahead(window=2, ngram=3, guesses=2)
    host = host_of(target, new_tokens=[8, 30, 30, 8])
    session = generate(host, drafter)
    rows = session.arms[0].drafter._rows
    assert not rows._places and len(rows._free) == 4
    second = host_of(target, [PROMPTS[2]], new_tokens=6, names=["new"])
    trees = [finished.trees for finished in rounds_with(rows, drafter, second)]
    alone = host_of(target, [PROMPTS[2]], new_tokens=6, names=["new"])
    fresh = [finished.trees for finished in rounds_with(None, drafter, alone)]
    assert len(rows._windows) == 4  # no place was added
    for one, other in zip(trees, fresh, strict=True):
        assert torch.equal(one.tokens, other.tokens) and torch.equal(one.parents, other.parents)


def rounds_with(rows, drafter, host):
    session = Speculator(drafter=drafter, controller="fixed").open(host)
    if rows is not None:
        session.arms[0].drafter._rows = rows
    while len(host.active):
        finished = run_round(host, session)
        session.observe(finished)
        yield finished


# --- lossless


@pytest.mark.parametrize("late", [0, 1])
@pytest.mark.parametrize("options", OPTIONS)
def test_greedy_equals_plain_decoding(options, late):
    target, limits = table(12, 1), [17, 5, 1, 43]
    host = host_of(target, new_tokens=limits, starts=[0, 2, 1, 3])
    generate(host, Lookahead(**options), late)
    for row, (prompt, limit) in enumerate(zip(PROMPTS, limits, strict=True)):
        assert host.result(row) == plain_greedy(target, prompt, limit)


@pytest.mark.parametrize(
    "tree", ["chain:length=1", "chain:length=4", "kary:branch=2,depth=3", "sequoia:size=20,depth=5"]
)
@pytest.mark.parametrize("controller", ["fixed", "goodput"])
def test_greedy_equals_plain_decoding_within_any_tree(tree, controller):
    target = table(12, 3)
    host = host_of(target, new_tokens=50)
    generate(host, Lookahead(), tree=tree, controller=controller)
    for row, prompt in enumerate(PROMPTS):
        assert host.result(row) == plain_greedy(target, prompt, 50)


@pytest.mark.parametrize("options", [dict(window=2, ngram=3, guesses=2), dict(window=3, ngram=2, guesses=3)])
def test_sampling_follows_the_exact_law_of_three_tokens(options):
    """n = 6000 rows fixed beforehand; a lossless sampler fails with probability 1e-5 (seeds are fixed: once)."""
    vocab, count, prompt, n = 4, 3, (0, 1, 2, 0, 1), 6000
    target = table(vocab, 2, 1.0)
    host = host_of(target, [prompt] * n, sampling=True, new_tokens=6)
    session = generate(host, Lookahead(memory=8, **options))
    assert session.stats.accepted > n
    tokens = host.text[:, len(prompt) : len(prompt) + count]
    code = sum(tokens[:, i] * vocab ** (count - 1 - i) for i in range(count))
    law = joint_law(target, prompt, count)
    counts = torch.bincount(code, minlength=vocab**count)
    assert stats.chisquare(counts.numpy(), (law * n).numpy()).pvalue > ALARM


@pytest.mark.parametrize("sampling", [False, True])
def test_a_row_alone_draws_what_it_draws_in_a_batch(sampling):
    target, seeds = table(12, 1), torch.arange(4) + 5
    together = host_of(target, sampling=sampling, seeds=seeds, new_tokens=40)
    generate(together, Lookahead(window=3, ngram=4, guesses=3))
    for row, prompt in enumerate(PROMPTS):
        alone = host_of(target, [prompt], sampling=sampling, seeds=seeds[row : row + 1], new_tokens=40, names=[row])
        generate(alone, Lookahead(window=3, ngram=4, guesses=3))
        assert alone.result(0) == together.result(row)


# --- what it gives


@pytest.mark.parametrize(("late", "least"), [(0, 4.0), (1, 3.0)])
def test_a_text_that_repeats_is_found_out(late, least):
    """A target that goes in a circle of six tokens, begun with none of it in the prompt."""
    logits = torch.zeros(10, 10, 10)
    for token in range(10):
        logits[:, token, (token + 1) % 6] = 9.0
    host = host_of(logits, [[7, 0], [6, 3]], new_tokens=120)
    session = generate(host, Lookahead(), late)
    for row in range(2):
        assert host.result(row) == plain_greedy(logits, host.prompts[row], 120)
    assert session.stats.accepted_length > least


def test_nothing_is_learnt_without_logits_or_from_another_s_trees():
    target = table(12, 1)
    host = host_of(target, new_tokens=20)
    session = Speculator(drafter=Lookahead(), controller="fixed").open(host)
    drafter = session.arms[0].drafter
    finished = run_round(host, session)
    before = drafter._rows._windows.clone()
    other = limited(finished.trees, finished.plan.shape, [3] * 4)
    for strange in (
        replaced(finished, logits=None),
        replaced(finished, trees=replaced(other, tokens=other.tokens.clone())),
    ):
        drafter.observe(strange)
        assert torch.equal(drafter._rows._windows, before) and not (drafter._rows._ngrams >= 0).any()
    drafter.observe(finished)
    assert not torch.equal(drafter._rows._windows, before)


def replaced(value, **changes):
    import dataclasses

    return dataclasses.replace(value, **changes)


def test_a_round_that_is_observed_when_rows_have_left():
    """The others learn from it what they would have learnt, and nothing comes back of those."""
    left = []
    for gone in ([], [1, 2], [0, 1, 2, 3]):
        host = host_of(table(12, 1), new_tokens=20)
        session = Speculator(drafter=Lookahead(), controller="fixed").open(host)
        rows = session.arms[0].drafter._rows
        finished = run_round(host, session)
        session.forget(gone)
        session.arms[0].drafter.observe(finished)
        assert set(rows._places) == set(range(4)) - set(gone)
        left.append({row: rows._windows[place] for row, place in rows._places.items()})
    assert all(torch.equal(left[1][row], left[0][row]) for row in left[1])


def test_columns_that_were_cut_away_stay_as_they_are():
    """A plan may give a row less than was drafted: what was not verified says nothing."""
    target = table(12, 1)
    host = host_of(target, [PROMPTS[3]], new_tokens=60)
    drafter = Lookahead(window=4, ngram=3, guesses=1)
    session = Speculator(drafter=drafter, controller="fixed").open(host)
    working = session.arms[0].drafter
    for _ in range(4):  # until the columns differ
        session.observe(run_round(host, session))
    finished = run_round(host, session)
    assert finished.trees.num_nodes > 6
    before = working._rows._windows.clone()
    drafted = working._drafted[-1].last[0].tolist()
    size = sorted(drafted)[1]  # the first two columns' last nodes are within
    working.observe(replaced(finished, trees=limited(finished.trees, finished.plan.shape, [size])))
    kept = [node <= size for node in drafted]
    assert 0 < sum(kept) < 4
    for column, real in enumerate(kept):
        after = working._rows._windows[0, :, column].tolist()
        if real:
            root = int(finished.batch.roots[0])
            assert after[:-1] == before[0, 1:, column].tolist()
            path = finished.logits[0, drafted[column]]
            assert after[-1] == int(path.argmax()) and root == int(finished.trees.tokens[0, 0])
        else:
            assert not column or after == before[0, :, column].tolist()
            assert (
                int(working._rows._ngrams[0, column, 0]) < 0
            )  # the newest stand in front, by column: none of this one


# --- within any tree


@pytest.mark.parametrize("options", OPTIONS)
def test_its_own_tree_has_room_for_all_of_it(options):
    drafter = Lookahead(**options)
    (shape,) = drafter.shapes()
    assert drafter._fitting(shape) == (drafter.window, drafter.guesses, drafter.ngram - 1)
    assert shape.size == drafter.window * (drafter.ngram - 1) - 1 + drafter.guesses * (drafter.ngram - 1)
    assert shape.depth == max(drafter.window + drafter.ngram - 3, drafter.ngram - 1)


@pytest.mark.parametrize("options", OPTIONS)
def test_smaller_trees_drop_guesses_first_and_then_columns(options):
    drafter = Lookahead(**options)
    levels, seen = drafter.ngram - 1, {}
    for depth in range(12):
        for size in range(depth, 70):
            columns, guesses, length = drafter._fitting(bound(size, depth))
            nodes = max(1, columns * levels) - 1 + guesses * length
            deepest = max(columns + levels - 2 if columns else 0, length if guesses else 0)
            assert nodes <= size and deepest <= depth
            assert 0 <= columns <= drafter.window and 0 <= guesses <= drafter.guesses and length <= levels
            if columns < drafter.window and depth >= drafter.window + levels - 2:
                assert guesses <= 1  # columns go only when the guesses have gone, but for one
            if size + 1 >= 2 * levels and depth >= levels:
                assert guesses >= 1  # which stays
            more = seen.get((size - 1, depth), (0, 0))
            assert columns >= more[0] and columns + guesses >= sum(more)  # a larger tree holds no less
            seen[size, depth] = columns, guesses
    assert drafter._fitting(bound(69, 11))[0] == drafter.window


def bound(size, depth):
    """Some shape of `size` draft tokens and `depth`: a chain with leaves at the root."""
    return TreeShape.from_parents([*range(-1, depth), *[0] * (size - depth)]) if depth else Chain(0).build()


def test_a_proposal_stays_within_the_request():
    target = table(12, 1)
    host = host_of(target, new_tokens=80)
    session = Speculator(drafter=Lookahead(), controller="fixed").open(host)
    for _ in range(12):
        session.observe(run_round(host, session))
    drafter, batch = session.arms[0].drafter, host.batch()
    for depth in range(8):
        for size in range(depth, 40, 3):
            trees = drafter.draft(DraftRequest(batch, bound(size, depth)))
            assert trees.num_nodes - 1 <= (size if depth else 0)
            assert int(trees.depths.max()) <= depth


def test_each_path_once_against_loops():
    generator = torch.Generator().manual_seed(0)
    parents = [-1, 0, 0, 1, 1, 2, 0, 6, 7, 3]
    for _ in range(50):
        tokens = torch.randint(0, 2, (3, len(parents)), generator=generator)
        there = torch.rand(tokens.shape, generator=generator) > 0.2
        there[:, 0] = True
        for node in range(1, len(parents)):
            there[:, node] &= there[:, parents[node]]
        trees, places = each_path_once(tokens, there, torch.tensor(parents), lineage_of(parents))
        for row in range(3):
            paths = [()]
            for node in range(1, len(parents)):
                paths.append((*paths[parents[node]], int(tokens[row, node])))
            wanted = {paths[node] for node in range(len(parents)) if there[row, node]}
            assert paths_of(trees, row) == dict.fromkeys(wanted, 1)
            for node in range(len(parents)):
                if there[row, node]:
                    assert path_to(trees, row, int(places[row, node])) == paths[node]


def path_to(trees, row, node):
    path = []
    while node:
        path.insert(0, int(trees.tokens[row, node]))
        node = int(trees.parents[row, node])
    return tuple(path)


# --- options


@pytest.mark.parametrize("name", ["window", "ngram", "guesses", "memory"])
def test_what_cannot_be_is_refused_by_name_and_value(name):
    with pytest.raises(OptionError, match=f"lookahead: {name}=0 must be at least"):
        Lookahead(**{name: 0})


def test_a_host_that_gives_no_logits_is_refused():
    host = TableHost(table(12, 1), table(12, 1), PROMPTS)
    with pytest.raises(UnsupportedError, match="target_pass"):
        Speculator(drafter=Lookahead()).open(host)


def test_the_key_tells_what_makes_it_draft_otherwise():
    keys = {Lookahead(**options).key for options in (*OPTIONS, dict(guesses=3))}
    assert len(keys) == len(OPTIONS) + 1
