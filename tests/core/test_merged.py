"""Merged trees: the union against plain sets of paths, the law by enumeration, shares, refusals and whole generations."""

import itertools
import math
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specplug import Drafter, Need, Speculator
from specplug.drafters import shares as shares_module
from specplug.drafters import union as union_module
from specplug.drafters.base import DraftRequest
from specplug.drafters.merged import Merged
from specplug.drafters.model import ModelDraft
from specplug.drafters.prompt_lookup import PromptLookup
from specplug.drafters.self_draft import SelfDraft
from specplug.drafters.shares import Proposed, Shares, judged, sizes
from specplug.drafters.suffix import Suffix
from specplug.drafters.union import Offer, united
from specplug.errors import OptionError, UnknownNameError
from specplug.kv_policies import Full, Streaming
from specplug.ragged import ragged_trees
from specplug.random import row_seeds
from specplug.round import run_round
from specplug.subtree import beginning
from specplug.tree import TreeShape, chain_shape, chain_trees, fill_shape, roots_only
from specplug.trees import Chain, Sequoia
from specplug_conformance.exact import orders

from .test_round import ALARM, PROMPTS, generate, host_of, p_value
from .test_suffix import batch_of, finished_round, paths_of
from .tools import CPU, emitted_law, first_tokens, joint_law, near, plain_greedy, table, target_law

ROWS = 3000
TOLERANCE = 2e-6  # what float32 laws allow


def tree_of(paths, roots=(0,)):
    """One row's tree of `paths`, in their order; each but for its last token must stand before it."""
    paths, tokens, parents = list(paths), [roots[0]], [-1]
    for path in paths:
        tokens.append(path[-1])
        parents.append(0 if len(path) == 1 else 1 + paths.index(path[:-1]))
    return ragged_trees(torch.tensor([tokens]), torch.tensor([parents]))


def closed(paths):
    """`paths` with everything they hang on, parents first."""
    return list(dict.fromkeys(path[:end] for path in paths for end in range(1, len(path) + 1)))


paths_of_one = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=4).map(tuple), max_size=5).map(closed)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.lists(paths_of_one, min_size=2, max_size=2), min_size=1, max_size=3), st.integers(1, 16))
def test_the_union_has_every_path_once_and_the_best_if_there_are_too_many(parts, size):
    """Two rows. A part's nodes are worth the less the later they come; the first part's the most."""
    offers = []
    for part, (one, other) in enumerate(parts):
        width = 1 + max(len(one), len(other))
        trees = [tree_of(paths) for paths in (one, other)]
        tokens = torch.cat([torch.nn.functional.pad(t.tokens, (0, width - t.num_nodes)) for t in trees])
        parents = torch.cat([torch.nn.functional.pad(t.parents, (0, width - t.num_nodes)) for t in trees])
        valid = torch.arange(width) < torch.tensor([[t.num_nodes] for t in trees])
        worth = 0.9 - 0.2 * part - 0.01 * torch.arange(width)
        offers.append(Offer(ragged_trees(tokens, parents, valid), worth))
    trees, fresh = united(torch.tensor([0, 0]), offers, size, 4)
    assert trees.num_nodes - 1 <= size
    for row in range(2):
        got = paths_of(trees, row)
        best = {}
        for part, rows in enumerate(parts):
            for place, path in enumerate(rows[row], start=1):
                best.setdefault(path, 0.9 - 0.2 * part - 0.01 * place)  # parts are ordered by worth
        wanted = sorted(best.values(), reverse=True)[:size]
        assert len(set(got)) == len(got)
        assert [best[path] for path in got] == pytest.approx(sorted([best[p] for p in got], reverse=True))
        assert sorted((best[path] for path in got), reverse=True) == pytest.approx(wanted)
        for place, path in enumerate(got):
            assert len(path) == 1 or path[:-1] in got[:place]
        seen = set()
        for rows, new in zip(parts, fresh, strict=True):
            news = [path for path, is_new in zip(rows[row], new[row, 1:].tolist(), strict=False) if is_new]
            assert news == [path for path in rows[row] if path not in seen]
            seen |= set(rows[row])


def test_what_must_stay_stays_and_keeps_its_columns():
    """What is to be left out stands behind it."""
    drafted = tree_of([(1,), (2,), (1, 3)])
    others = tree_of([(5,), (1,), (1, 3), (1, 3, 4), (5, 6)])
    trees, _ = united(torch.tensor([0]), [Offer(drafted, None), Offer(others, torch.full((6,), 0.9))], 5, 3)
    assert paths_of(trees, 0) == [(1,), (2,), (1, 3), (5,), (1, 3, 4)]
    assert torch.equal(trees.tokens[:, :4], drafted.tokens) and torch.equal(trees.parents[:, :4], drafted.parents)


def test_a_part_that_is_alone_is_left_as_it_is():
    chain = chain_trees(torch.tensor([0]), torch.tensor([[1, 2]]))
    nothing = roots_only(torch.tensor([0]))
    trees, _ = united(torch.tensor([0]), [Offer(nothing, None), Offer(chain, torch.ones(3))], 4, 2)
    assert trees is chain
    assert united(torch.tensor([0]), [Offer(nothing, None)] * 2, 4, 2)[0].num_nodes == 1


# --- the law, by enumeration


@dataclass(frozen=True)
class Drawn:
    """A part that draws the children of `shape` without replacement from a law of its own after every path."""

    shape: TreeShape
    seed: int
    vocab: int = 3

    def law(self, path):
        return target_law(self.vocab, self.seed)(path)

    def fills(self):
        """Every tree with its probability."""
        shape = self.shape

        def extend(tokens, laws, mass, rest):
            if not rest:
                yield tokens, laws, mass
                return
            node, path = rest[0], []
            while node:
                path.insert(0, tokens[node])
                node = shape.parents[node]
            law = self.law(tuple(path))
            children = [i for i, parent in enumerate(shape.parents) if parent == rest[0]]
            for drawn, share in orders(law, len(children)):
                filled = tokens | dict(zip(children, drawn, strict=True))
                yield from extend(filled, [*laws, law], mass * share, rest[1:])

        inner = sorted(set(shape.parents[1:]))
        for tokens, laws, mass in extend({0: 0}, [], 1.0, inner):
            row = torch.tensor([[tokens[node] for node in range(shape.num_nodes)]])
            yield fill_shape(shape, row, torch.stack(laws)[None]), mass


def merged_law_error(parts, size, vocab=3, seed=5, count=2):
    """Largest difference between the law of two tokens and the target's, over all that the parts may draw, independently."""
    target = target_law(vocab, seed)
    drawn = [list(part.fills()) if isinstance(part, Drawn) else [(part, 1.0)] for part in parts]
    fills = list(itertools.product(*drawn))  # a row each
    offers = [offer_of([fill[place][0] for fill in fills]) for place in range(len(parts))]
    trees, _ = united(torch.zeros(len(fills), dtype=torch.int64), offers, size, 3)
    got = sum(
        math.prod(mass for _, mass in fill) * first_tokens(law, target, vocab, count)
        for fill, law in zip(fills, emitted_law(trees, target), strict=True)
    )
    exact = first_tokens({(): 1.0}, target, vocab, count)
    return float((got - exact).abs().max())


def offer_of(rows):
    """A part's trees, one a row, as one batch. What was not drawn may be left out, the last first."""
    first = rows[0]
    tokens = torch.cat([tree.tokens for tree in rows])
    if first.laws is None:
        return Offer(
            ragged_trees(tokens, first.parents.expand(len(rows), -1)), 0.9 - 0.1 * torch.arange(first.num_nodes)
        )
    valid = None if first.valid is None else torch.cat([tree.valid for tree in rows])
    return Offer(replace(first, tokens=tokens, laws=torch.cat([tree.laws for tree in rows]), valid=valid), None)


FORK, BOTH, CHAIN = TreeShape((-1, 0, 0)), TreeShape((-1, 0, 0, 1, 1)), TreeShape((-1, 0, 1))
LOOKUP = tree_of([(1,), (1, 2), (0,), (0, 1)])
LAWFUL = {
    "drawn and looked up": ([Drawn(FORK, 1), LOOKUP], 6),
    "two levels": ([Drawn(BOTH, 2), LOOKUP], 8),
    "too many: the last are left out": ([Drawn(FORK, 1), LOOKUP], 4),
    "one place left, whatever was drawn": ([Drawn(CHAIN, 3), LOOKUP], 3),
    "two that draw": ([Drawn(FORK, 1), Drawn(CHAIN, 7)], 4),
    "two that draw and a lookup": ([Drawn(CHAIN, 1), Drawn(CHAIN, 7), LOOKUP], 7),
    "two lookups": ([LOOKUP, tree_of([(2,), (1,), (1, 2), (1, 2, 0)])], 8),
}


@pytest.mark.parametrize("case", LAWFUL)
def test_the_law_of_the_output_is_the_targets(case):
    """Equal tokens are among them in every case: three tokens, and all that could be drawn."""
    assert merged_law_error(*LAWFUL[case]) < TOLERANCE


def test_what_is_drawn_and_united_with_another_changes_the_law(monkeypatch):
    parts = [Drawn(CHAIN, 1), Drawn(CHAIN, 7)]
    assert merged_law_error(parts, 4) < TOLERANCE
    real = union_module._Pool._same
    monkeypatch.setattr(union_module._Pool, "_same", lambda pool, *given: real(pool, *given[:-1], 3))
    assert merged_law_error(parts, 4) > 100 * TOLERANCE


def test_what_is_drawn_and_left_out_for_another_changes_the_law():
    class Dropped(Drawn):
        """Drops its last node where the lookup has the same: what is kept depends on what was drawn."""

        def fills(self):
            for tree, mass in super().fills():
                valid = torch.ones_like(tree.tokens, dtype=torch.bool)
                valid[0, 2] = int(tree.tokens[0, 2]) != 1
                yield replace(tree, valid=valid), mass

    assert merged_law_error([Dropped(FORK, 1), LOOKUP], 6) > 100 * TOLERANCE


# --- whole generations


def spec_of(parts, tree, **more):
    return Speculator(drafter=Merged(parts), tree=tree, controller="fixed", **more)


def parts_of(kind, target):
    return {
        "lookups": lambda: [Suffix(), PromptLookup(1)],
        "lookup and model": lambda: [PromptLookup(), ModelDraft(near(target, 77))],
        "self and lookup": lambda: [SelfDraft(Full()), Suffix(memory=0, min_probability=0.0)],
        "two models": lambda: [ModelDraft(near(target, 77)), ModelDraft(near(target, 78)), PromptLookup(1)],
    }[kind]()


KINDS = ["lookups", "lookup and model", "self and lookup", "two models"]


@pytest.mark.parametrize(
    "tree", ["chain:length=5", "sequoia:size=9,depth=4", "kary:branch=2,depth=2", "chain:length=0"]
)
@pytest.mark.parametrize("kind", KINDS)
def test_greedy_equals_plain_decoding(kind, tree):
    target, limits = table(6, 1), [40, 5, 1, 23]
    host = host_of(target, PROMPTS, new_tokens=limits, starts=[0, 2, 1, 3])
    generate(host, spec_of(parts_of(kind, target), tree))
    for row, (prompt, limit) in enumerate(zip(PROMPTS, limits, strict=True)):
        assert host.result(row) == plain_greedy(target, prompt, limit)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tree", ["chain:length=4", "sequoia:size=7,depth=3"])
def test_sampling_follows_the_exact_law_of_three_tokens(kind, tree):
    """n = 3000 rows fixed beforehand; a lossless sampler fails with probability 1e-5 (seeds are fixed: once)."""
    target, prompt = table(4, 2, 1.0), (0, 1, 2, 0, 1)
    host = host_of(target, [prompt] * ROWS, sampling=True, new_tokens=5)
    generate(host, spec_of(parts_of(kind, target), tree))
    assert p_value(counts_of(host, prompt), joint_law(target, prompt, 3)) > ALARM


def counts_of(host, prompt):
    tokens = host.text[:, len(prompt) : len(prompt) + 3]
    return torch.bincount(tokens[:, 0] * 16 + tokens[:, 1] * 4 + tokens[:, 2], minlength=64)


def test_parts_that_draw_by_the_same_numbers_fail_the_chi_square(monkeypatch):
    import specplug.drafters.merged as merged_module

    target, prompt = table(4, 2, 1.0), (0, 1, 2, 0, 1)
    monkeypatch.setattr(merged_module, "_with_draws_of", lambda batch, place: batch)
    host = host_of(target, [prompt] * 4 * ROWS, sampling=True, new_tokens=5)
    same = near(target, 77, noise=2.0)
    generate(host, spec_of([ModelDraft(same), ModelDraft(same)], "kary:branch=2,depth=1"))
    assert p_value(counts_of(host, prompt), joint_law(target, prompt, 3)) < ALARM


@pytest.mark.parametrize("sampling", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_alone_in_a_batch_and_permuted(kind, sampling):
    """The same draws, to the last token: nothing that was learnt of others changes a sampled row's tree."""
    target, seeds = table(6, 1), row_seeds(11, 4, CPU)

    def run(order):
        host = host_of(target, [PROMPTS[i] for i in order], sampling=sampling, seeds=seeds[order], new_tokens=40)
        generate(host, spec_of(parts_of(kind, target), "sequoia:size=8,depth=4"))
        return {i: host.result(place) for place, i in enumerate(order)}

    together = run([0, 1, 2, 3])
    assert run([2, 0, 3, 1]) == together
    for row in range(4):
        assert run([row])[row] == together[row]


def test_rounds_seen_late_and_rows_that_pause():
    target = table(6, 1)
    host = host_of(target, PROMPTS, new_tokens=30)
    session, waiting = spec_of(parts_of("lookup and model", target), "sequoia:size=8,depth=4").open(host), []
    generator = torch.Generator().manual_seed(1)
    while bool((open_rows := host.ends < host.stops).any()):
        chosen = open_rows & (torch.rand(4, generator=generator) < 0.5)
        host.active = torch.nonzero(chosen if bool(chosen.any()) else open_rows).flatten()
        waiting.append(run_round(host, session))
        if len(waiting) > 1:
            session.observe(waiting.pop(0))
    assert [host.result(row) for row in range(4)] == [plain_greedy(target, prompt, 30) for prompt in PROMPTS]
    assert float(session.arms[0].drafter._shares._seen.sum()) > 0


# --- shares


def test_what_a_round_committed_judges_every_part():
    """Committed: 1, 2, 3. Right: 1 and 1-2; wrong: 5 and what hangs on it; unknown: what stands behind the last."""
    trees = tree_of([(1,), (5,), (1, 2), (5, 2), (1, 2, 3), (1, 2, 3, 9), (1, 7)])
    right, known = judged(trees, torch.tensor([[1, 2, 3, 9]]), torch.tensor([3]))
    assert right[0].tolist() == [True, True, False, True, False, True, False, False]
    assert known[0].tolist() == [True, True, True, True, True, True, False, True]


def test_a_part_that_is_always_right_gets_nearly_all():
    shares = Shares(2)
    assert sizes(shares.worth(learnt=True), 10) == [5, 5]
    good, bad = tree_of([(1,), (1, 2), (1, 2, 3)]), tree_of([(4,), (4, 5), (4, 5, 6)])
    everything = torch.ones(1, 4, dtype=torch.bool)
    for _ in range(60):
        shares.observe(
            [Proposed(bad, everything), Proposed(good, everything)], torch.tensor([[1, 2, 3]]), torch.tensor([3])
        )
    assert sizes(shares.worth(learnt=True), 4) == [1, 3]
    assert sizes(shares.worth(learnt=False), 4) == [2, 2]
    assert (shares.worth(learnt=True).diff(dim=1) <= 0).all()


def test_what_an_earlier_part_has_too_says_nothing_of_a_later_one():
    shares, trees = Shares(2), tree_of([(1,)])
    new, old = torch.tensor([[True, True]]), torch.tensor([[False, False]])
    for _ in range(30):
        shares.observe([Proposed(trees, new), Proposed(trees, old)], torch.tensor([[1]]), torch.tensor([1]))
    first, second = shares.worth(learnt=True)[:, 0].tolist()
    assert first > 0.9 and second == pytest.approx(shares_module.FIRST)


def test_a_smaller_tree_is_what_a_shape_begins_with():
    shape = Sequoia(9, 4).build()
    for size in range(10):
        small = beginning(shape, size)
        assert small.size == size
        kept = [node for node, rank in enumerate(shape.priority) if rank <= size]
        assert [-1, *(kept[parent] for parent in small.parents[1:])] == [shape.parents[node] for node in kept]
    assert beginning(Chain(5).build(), 3) == chain_shape(3)


def test_models_come_first_and_get_their_share_the_others_what_is_left():
    asked = {}

    class Spy(Drafter):
        def __init__(self, name, with_model):
            self.name, self.drafts_with_model = name, with_model  # type: ignore[misc]

        def draft(self, request):
            asked[self.name] = request.shape.size
            tokens = torch.arange(request.shape.depth)[None] + (10 if self.name == "lookup" else 20)
            return chain_trees(request.batch.roots, tokens)

    drafter = Merged([Spy("lookup", False), Spy("model", True)]).open(SimpleNamespace(vocab_size=99))
    trees = drafter.draft(DraftRequest(batch_of([[1, 2]]), chain_shape(8)))
    assert asked == {"model": 4, "lookup": 8}
    assert paths_of(trees, 0)[:4] == [tuple(range(20, 20 + n)) for n in range(1, 5)]
    assert [path[-1] for path in paths_of(trees, 0)[4:]] == [10, 11, 12, 13]
    assert drafter.drafts_with_model and not drafter.rehearses


def test_a_model_without_a_place_is_not_run():
    target = table(6, 1)
    host = host_of(target, PROMPTS)
    drafter = Merged([ModelDraft(near(target, 77)), SelfDraft(Full())]).open(host)
    trees = drafter.draft(DraftRequest(host.batch(), chain_shape(1)))
    assert trees.num_nodes == 2
    assert [part._runner.calls for part in drafter.parts] == [1, 0]


def test_merged_parts_of_a_merged_drafter_stand_beside_the_others():
    """Each has seeds of its own to draw by."""
    inner = Merged([PromptLookup(), ModelDraft("one")])
    assert [type(part).__name__ for part in Merged([Suffix(), inner, ModelDraft("two")]).parts] == [
        "ModelDraft", "ModelDraft", "Suffix", "PromptLookup",
    ]  # fmt: skip


def test_every_part_is_told_what_became_of_a_round():
    told = []

    class Listener(PromptLookup):
        def observe(self, finished):
            told.append(("observe", finished))

        def forget(self, rows):
            told.append(("forget", rows))

        def unread(self, batch):
            return 7

    drafter = Merged([Listener(), Listener(1)]).open(SimpleNamespace(vocab_size=99))
    batch = batch_of([[1, 2]])
    finished = finished_round(batch, [[3, 4]], [2])
    drafter.observe(finished)
    drafter.forget((0,))
    assert told == [("observe", finished)] * 2 + [("forget", (0,))] * 2
    assert drafter.unread(batch) == 14


# --- what is asked for


def test_parts_by_name():
    spec = Speculator(drafter="merged:parts=suffix + prompt_lookup") if _registered() else None
    drafter = Merged("prompt_lookup+self", kv_policy=Streaming(2, 6)) if spec is None else spec.drafters[0]
    assert isinstance(drafter, Merged)
    named = Merged("prompt_lookup+self", kv_policy=Streaming(2, 6))
    assert named.required == {Need.HISTORY, Need.TARGET_RUNNER} and named.budget == Streaming(2, 6).budget
    assert Merged("prompt_lookup+model", model="draft").parts[0].model == "draft"


def _registered():
    from specplug.plugins import plugins

    return {"merged", "suffix"} <= set(plugins().names("drafters"))


def test_refusals():
    class Looks(Drafter):
        needs = frozenset({Need.TARGET_PASS})

    for parts, message in (
        ([PromptLookup()], "must be two drafters or more"),
        ([PromptLookup(), "model"], "a part must be a Drafter, got 'model'"),
        ([PromptLookup(), Looks()], "Looks learns from the target's logits"),
        ([PromptLookup(), ModelDraft()], "ModelDraft has no model; pass draft_model"),
        ("prompt_lookup+model", "ModelDraft has no model; pass draft_model"),
    ):
        with pytest.raises(OptionError, match=message):
            Merged(parts)
    with pytest.raises(OptionError, match="no part of 'none\\+prompt_lookup' uses it"):
        Merged("none+prompt_lookup", model=object())
    with pytest.raises(UnknownNameError, match="prompt_lookap"):
        Merged("prompt_lookap+none")


def test_what_the_parts_need_is_asked_for():
    drafter = Merged([PromptLookup(), SelfDraft(Streaming(2, 6)), SelfDraft(Streaming(2, 14))])
    assert drafter.required == {Need.HISTORY, Need.TARGET_RUNNER}
    assert drafter.budget == 16 and drafter.min_context == 0
    assert Merged([SelfDraft(Full()), PromptLookup()]).budget is None
    assert "PromptLookup[3-1] + PromptLookup[1-1]" in Merged([PromptLookup(), PromptLookup(1)]).key
