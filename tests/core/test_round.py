"""Whole generations, round by round, over a target whose exact law is known: every drafter, every tree."""

import pytest
import torch
from scipy import stats

from specplug import Speculator
from specplug.errors import ProposalError, UnsupportedError
from specplug.needs import Need
from specplug.random import row_seeds
from specplug.round import run_round
from specplug.stats import SpecStats

from .tools import CPU, TableHost, joint_law, near, plain_greedy, table

DRAFTERS = ["none", "self", "model", "prompt_lookup", "prompt_lookup:ngram=1"]
TREES = ["chain:length=1", "chain:length=4", "kary:branch=2,depth=2", "sequoia:size=9,depth=4", "chain:length=0"]
ALARM = 1e-5


def speculator(drafter="auto", tree="auto", target=None, **options):
    draft = near(target, 77) if drafter == "model" else None
    return Speculator(drafter=drafter, tree=tree, draft_model=draft, **{"controller": "fixed"} | options)


def generate(host, spec):
    session = spec.open(host)
    while len(host.active):
        session.observe(run_round(host, session))
    spec.finish(session)
    return session


def host_of(target, prompts, **options):
    return TableHost(target, near(target, 5), prompts, **options)


PROMPTS = [[0, 1], [3, 3, 2, 3, 3, 2], [1, 2, 3, 4, 5], [4, 0, 4, 0, 4]]


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("drafter", DRAFTERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_greedy_equals_plain_decoding(drafter, tree, dtype):
    """Token for token; ragged prompts behind ragged padding, and rows that finish at different times."""
    target = table(6, 1, dtype=dtype)
    limits = [17, 5, 1, 23]
    host = host_of(target, PROMPTS, new_tokens=limits, starts=[0, 2, 1, 3])
    generate(host, speculator(drafter, tree, target))
    for row, (prompt, limit) in enumerate(zip(PROMPTS, limits, strict=True)):
        assert host.result(row) == plain_greedy(target, prompt, limit)


def sampled_tokens(drafter, tree, vocab=4, rows=6000, count=3, room=6, prompt=(0, 1, 2, 0, 1), seed=0, **options):
    """First `count` tokens of `rows` rows with seeds of their own, and their exact joint law."""
    target = table(vocab, 2, 1.0)
    host = host_of(target, [prompt] * rows, sampling=True, new_tokens=room, seed=seed)
    generate(host, speculator(drafter, tree, target, **options))
    tokens = host.text[:, len(prompt) : len(prompt) + count]
    code = sum(tokens[:, i] * vocab ** (count - 1 - i) for i in range(count))
    return torch.bincount(code, minlength=vocab**count), joint_law(target, prompt, count)


def p_value(counts, law):
    return stats.chisquare(counts.numpy(), (law * counts.sum()).numpy()).pvalue


@pytest.mark.parametrize(
    ("drafter", "tree"),
    [
        ("none", "auto"),
        ("self", "chain:length=3"),
        ("self", "kary:branch=3,depth=2"),
        ("model", "sequoia:size=9,depth=4"),
        ("model", "kary:branch=4,depth=1"),
        ("model", "chain:length=4"),
        ("prompt_lookup", "chain:length=3"),
        ("prompt_lookup:ngram=1", "chain:length=2"),
    ],
)
def test_sampling_follows_the_exact_law_of_three_tokens(drafter, tree):
    """n = 6000 rows fixed beforehand; a lossless sampler fails with probability 1e-5 (seeds are fixed: once)."""
    assert p_value(*sampled_tokens(drafter, tree)) > ALARM


def test_a_greedy_row_in_a_sampled_batch():
    """One-hot laws from the host's processors: the row's tokens are the argmax, whatever is drawn."""
    target = table(6, 1)

    class Mixed(TableHost):
        def distributions(self, batch, logits, trees):
            probs = logits.softmax(-1)
            greedy = torch.nn.functional.one_hot(logits.argmax(-1), self.vocab_size).float()
            is_greedy = torch.tensor([name == "greedy" for name in batch.rows])
            return type(super().distributions(batch, logits, trees))(
                probs=torch.where(is_greedy[:, None, None], greedy, probs)
            )

    for tree in ("kary:branch=3,depth=2", "chain:length=3"):
        host = Mixed(target, near(target, 5), [[0, 1]] * 2, sampling=True, names=["greedy", "sampled"])
        generate(host, speculator("self", tree, target))
        assert host.result(0) == plain_greedy(target, [0, 1], 16)


@pytest.mark.parametrize("sampling", [False, True])
@pytest.mark.parametrize(
    ("drafter", "tree"),
    [
        ("self", "sequoia:size=6,depth=3"),
        ("model", "chain:length=3"),
        ("prompt_lookup", "chain:length=4"),
        ("none", "auto"),
    ],
)
def test_a_row_alone_in_a_batch_and_permuted(drafter, tree, sampling):
    """The same trees, the same draws, to the last token."""
    target, seeds = table(6, 1), row_seeds(11, 4, CPU)

    def run(order):
        host = host_of(target, [PROMPTS[i] for i in order], sampling=sampling, seeds=seeds[order], new_tokens=60)
        generate(host, speculator(drafter, tree, target))
        return {i: host.result(place) for place, i in enumerate(order)}

    together = run([0, 1, 2, 3])
    assert run([2, 0, 3, 1]) == together
    for row in range(4):
        assert run([row])[row] == together[row]


@pytest.mark.parametrize("sampling", [False, True])
def test_rows_join_leave_and_pause(sampling):
    """Continuous batching: who else is in the batch, and when, changes nothing for a row."""
    target = table(6, 1)
    spec = speculator("model", "sequoia:size=6,depth=3", target)
    calm = host_of(target, PROMPTS, sampling=sampling, new_tokens=20)
    generate(calm, spec)
    busy = host_of(target, PROMPTS, sampling=sampling, new_tokens=20)
    session = spec.open(busy)
    generator = torch.Generator().manual_seed(1)
    for _ in range(500):
        waiting = busy.ends < busy.stops
        if not bool(waiting.any()):
            break
        chosen = waiting & (torch.rand(4, generator=generator) < 0.5)
        busy.active = torch.nonzero(chosen if bool(chosen.any()) else waiting).flatten().flip(0)
        session.observe(run_round(busy, session))
    assert [busy.result(row) for row in range(4)] == [calm.result(row) for row in range(4)]
    assert sum(session.stats.emitted_by_row.values()) == 80


@pytest.mark.parametrize("sampling", [False, True])
@pytest.mark.parametrize("where", ["verify", "distributions", "draft"])
def test_an_exception_leaves_a_usable_state(where, sampling):
    """The round that failed is simply run again, and the output is as if nothing had happened."""
    target = table(6, 1)
    spec = speculator("model", "sequoia:size=6,depth=3", target)
    calm = host_of(target, PROMPTS, sampling=sampling)
    generate(calm, spec)
    host = host_of(target, PROMPTS, sampling=sampling)
    session = spec.open(host)
    owner = session.arms[0].drafter if where == "draft" else host
    real, rounds = getattr(owner, where), 0

    def flaky(*arguments):
        nonlocal rounds
        rounds += 1
        if rounds % 2:
            raise RuntimeError("out of memory")
        return real(*arguments)

    setattr(owner, where, flaky)
    failures = 0
    while len(host.active):
        before = host.text.clone(), host.ends.clone()
        try:
            session.observe(run_round(host, session))
        except RuntimeError:
            failures += 1
            assert torch.equal(host.text, before[0])
            assert torch.equal(host.ends, before[1])
    assert failures >= 3
    assert session.stats.rounds == rounds - failures
    assert [host.result(row) for row in range(4)] == [calm.result(row) for row in range(4)]


def test_observing_a_round_late_changes_nothing():
    """Overlapped scheduling: a round is run before the last one was looked at."""
    target = table(6, 1)
    spec = speculator("model", "chain:length=3", target, controller="auto")
    host = host_of(target, PROMPTS)
    session, last = spec.open(host), None
    while len(host.active):
        newest = run_round(host, session)
        if last is not None:
            session.observe(last)
        last = newest
    session.observe(last)
    assert [host.result(row) for row in range(4)] == [plain_greedy(target, prompt, 16) for prompt in PROMPTS]
    assert session.stats.emitted == 64


def test_no_row_gets_more_than_it_may_take():
    host = host_of(table(6, 1), PROMPTS, new_tokens=3)
    session = speculator("self", "chain:length=8").open(host)
    finished = run_round(host, session)
    assert finished.plan.shape.depth == 2  # three tokens: two drafted and the bonus


def test_auto_defaults_run_and_stay_lossless():
    target = table(6, 1)
    host = host_of(target, PROMPTS, new_tokens=60)
    spec = Speculator()
    session = generate(host, spec)
    assert [host.result(row) for row in range(4)] == [plain_greedy(target, prompt, 60) for prompt in PROMPTS]
    assert spec.stats is session.stats
    assert isinstance(spec.stats, SpecStats)
    assert session.stats.emitted == 240


def test_one_speculator_serves_many_threads():
    from concurrent.futures import ThreadPoolExecutor

    target = table(6, 1)
    spec = Speculator(draft_model=near(target, 77))

    def work(i):
        host = host_of(target, [PROMPTS[i % 4]], new_tokens=40)
        generate(host, spec)
        return host.result(0)

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(work, range(12)))
    assert results == [plain_greedy(target, PROMPTS[i % 4], 40) for i in range(12)]


def test_what_a_host_cannot_give_is_refused_by_name():
    host = host_of(table(6, 1), PROMPTS, capabilities=frozenset({Need.HISTORY}))
    with pytest.raises(UnsupportedError, match="'self' needs target_runner, which TableHost cannot give"):
        speculator("self").open(host)
    assert {arm.label.split("/")[0] for arm in Speculator().open(host).arms} == {"PromptLookup", "none"}
    host.capabilities = frozenset()
    assert [arm.label for arm in Speculator(controller="fixed").open(host).arms] == ["none"]


def test_an_invalid_proposal_is_stopped_before_the_target():
    host = host_of(table(6, 1), PROMPTS)
    session = speculator("self", "chain:length=2").open(host)
    drafter = session.arms[0].drafter
    too_long = speculator("self", "chain:length=5").open(host).arms[0]
    drafter.draft = lambda request: too_long.drafter.draft(type(request)(request.batch, too_long.shape))
    with pytest.raises(ProposalError, match="proposed 5 tokens a row; the plan allows 2"):
        run_round(host, session)
    assert host.verified == 0
