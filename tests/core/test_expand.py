"""Filling a tree with a draft. The runner is a fake: it reads a table instead of running a model."""

import pytest
import torch
from hypothesis import given, settings
from scipy import stats

from specplug.drafters import DraftRequest, ModelDraft, SelfDraft, expand
from specplug.errors import OptionError
from specplug.kv_policies import Streaming
from specplug.round import accept
from specplug.tree import TreeShape, inner_nodes
from specplug.trees import Chain, KAry, Sequoia
from specplug_conformance.exact import orders

from .test_tree import parent_lists
from .tools import TableHost, joint_law, table

VOCAB = 6


def make(sampling=False, rows=3, seed=0):
    prompts = [[row % VOCAB, (2 * row + 1) % VOCAB] for row in range(rows)]
    return TableHost(table(VOCAB, 0), table(VOCAB, 1), prompts, sampling=sampling, seed=seed)


def fill(host, shape):
    batch = host.batch()
    return batch, expand(host, host.runner(None, None), DraftRequest(batch, shape))


def narrow(shape):
    counts = [shape.parents.count(node) for node in range(shape.num_nodes)]
    return max(counts) <= VOCAB


@settings(max_examples=60, deadline=None)
@given(parent_lists(10))
def test_greedy_children_are_the_most_probable_tokens_in_order(parents):
    shape = TreeShape.from_parents(parents)
    if not narrow(shape):
        return
    host = make()
    batch, trees = fill(host, shape)
    assert trees.laws is None
    for row in range(batch.num_rows):
        before = {0: int(host.text[row, 0])}
        for node in inner_nodes(shape):
            token = int(trees.tokens[row, node])
            best = host.draft[before[node], token].argsort(descending=True).tolist()
            children = [i for i, parent in enumerate(shape.parents) if parent == node]
            assert trees.tokens[row, children].tolist() == best[: len(children)]
            before |= dict.fromkeys(children, token)


@settings(max_examples=60, deadline=None)
@given(parent_lists(10))
def test_sampled_children_are_distinct_and_carry_the_law_they_were_drawn_from(parents):
    shape = TreeShape.from_parents(parents)
    if not narrow(shape):
        return
    host = make(sampling=True)
    batch, trees = fill(host, shape)
    if shape.size == 0:
        assert trees.laws is None
        return
    assert trees.laws.dtype == torch.float32
    assert trees.laws.shape == (3, len(inner_nodes(shape)), VOCAB)
    for row in range(batch.num_rows):
        before = {0: int(host.text[row, 0])}
        for node in inner_nodes(shape):
            token = int(trees.tokens[row, node])
            children = [i for i, parent in enumerate(shape.parents) if parent == node]
            assert len(set(trees.tokens[row, children].tolist())) == len(children)
            for child in children:
                law = trees.laws[row, trees.law_index[0, child]]
                assert torch.equal(law, host.draft[before[node], token].softmax(-1))
            before |= dict.fromkeys(children, token)


def test_the_joint_law_of_a_sampled_tree():
    """Two children of the root, one grandchild under each: 20 000 rows against the exact law, alarm 1e-5."""
    rows, vocab = 20_000, 3
    host = TableHost(table(vocab, 0), table(vocab, 5), [[0, 1]] * rows, sampling=True, seed=3)
    _, trees = fill(host, TreeShape((-1, 0, 0, 1, 2)))
    law = host.draft.double().softmax(-1)
    expected = {
        (*pair, a, b): mass * float(law[1, pair[0], a] * law[1, pair[1], b]) * rows
        for pair, mass in orders(law[0, 1], 2)
        for a in range(vocab)
        for b in range(vocab)
    }
    seen = dict.fromkeys(expected, 0)
    for tokens in trees.tokens[:, 1:].tolist():
        seen[tuple(tokens)] += 1
    assert stats.chisquare(list(seen.values()), list(expected.values())).pvalue > 1e-5


@pytest.mark.parametrize("sampling", [False, True])
@pytest.mark.parametrize("shape", [Chain(3).build(), KAry(2, 2).build(), Sequoia(8, 3).build()], ids=str)
def test_a_row_alone_drafts_as_in_a_batch(sampling, shape):
    host = make(sampling)
    _, together = fill(host, shape)
    for row in range(3):
        host.active = torch.tensor([row])
        _, alone = fill(host, shape)
        assert torch.equal(alone.tokens[0], together.tokens[row])


def test_one_forward_a_level():
    host = make()
    runner = host.runner(None, None)
    expand(host, runner, DraftRequest(host.batch(), Sequoia(8, 3).build()))
    assert runner.calls == 3


def test_drafters_open_their_runner_once():
    host = make()
    opened = SelfDraft(Streaming(1, 2)).open(host)
    assert opened.draft(DraftRequest(host.batch(), Chain(2).build())).num_nodes == 3
    other = ModelDraft(table(VOCAB, 9)).open(host)
    assert other.draft(DraftRequest(host.batch(), Chain(2).build())).num_nodes == 3
    with pytest.raises(OptionError, match="draft_model"):
        ModelDraft().open(host)


@pytest.mark.parametrize("kind", [SelfDraft, lambda kv_policy: ModelDraft("m", kv_policy)])
def test_a_policy_by_name_is_refused_with_the_remedy(kind):
    with pytest.raises(OptionError, match=r"Speculator\(kv_policy="):
        kind(kv_policy="full")


# --- stopping where the draft is unsure


@pytest.mark.parametrize("sampling", [False, True])
@pytest.mark.parametrize("stop", [0.25, 0.4, 0.9])
@pytest.mark.parametrize("shape", [Chain(4).build(), KAry(2, 3).build(), Sequoia(9, 4).build()])
def test_a_draft_stops_below_improbable_tokens_and_keeps_them(sampling, stop, shape):
    host = make(sampling=sampling)
    batch = host.batch()
    whole = expand(host, host.runner(None, None), DraftRequest(batch, shape, explain=True))
    trees = expand(host, host.runner(None, None), DraftRequest(batch, shape, explain=True), stop)
    assert trees.valid is not None and trees.shape == shape.cut(trees.shape.depth)
    assert torch.equal(trees.tokens, whole.tokens[:, : trees.num_nodes])  # what is drafted is what would have been
    for row in range(batch.num_rows):
        real = {0}
        for node in range(1, shape.num_nodes):
            parent = shape.parents[node]
            sure = parent == 0 or float(whole.confidence[row, parent]) >= stop
            if parent in real and sure:
                real.add(node)
        shown = {node for node in range(trees.num_nodes) if trees.valid[row, node]}
        assert shown == real


def test_levels_that_nobody_wants_are_not_drafted():
    host = make()
    runner = host.runner(None, None)
    levels = []
    extend = runner.extend
    runner.extend = lambda tokens, level, *more: levels.append(level) or extend(tokens, level, *more)
    trees = expand(host, runner, DraftRequest(host.batch(), Chain(6).build()), 1.0)
    assert trees.num_nodes == 2 and not levels


@pytest.mark.parametrize("stop", [-0.1, 1.5])
def test_a_stop_is_a_probability(stop):
    with pytest.raises(OptionError, match="probability"):
        ModelDraft(object(), stop=stop)


@pytest.mark.parametrize("shape", [Chain(3).build(), KAry(2, 2).build()])
def test_stopping_leaves_the_law_as_it_is(shape):
    """Whether a branch ends depends on tokens that stay: first tokens of many seeds against the target's exact law."""
    seeds, vocab = 6000, 3
    target, draft = table(vocab, 0), table(vocab, 1)
    host = TableHost(target, draft, [[0, 1]] * seeds, sampling=True, new_tokens=2, seed=11)
    drafter = ModelDraft(draft, stop=0.45).open(host)
    counts = torch.zeros(vocab, vocab)
    stopped = False
    while len(host.active):
        batch = host.batch()
        trees = drafter.draft(DraftRequest(batch, shape))
        stopped |= bool((~trees.valid).any())
        verdict = accept(batch, trees, host.distributions(batch, host.verify(batch, trees), trees))
        host.commit(batch, trees, verdict)
    for row in range(seeds):
        first, second = host.result(row)
        counts[first, second] += 1
    expected = joint_law(target, [0, 1], 2).reshape(vocab, vocab) * seeds
    assert stopped
    assert stats.chisquare(counts.flatten().numpy(), expected.flatten().numpy()).pvalue > 1e-4
