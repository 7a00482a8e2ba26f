import json

import pytest

from specplug import Speculator
from specplug.host import Commit
from specplug.round import run_round

from .test_round import PROMPTS, host_of, speculator
from .tools import near, table

TARGET = table(6, 1)


def run(drafter, tree, controller="fixed", **options):
    host = host_of(TARGET, PROMPTS, new_tokens=20, **options)
    session, rounds = speculator(drafter, tree, TARGET, controller=controller).open(host), []
    while len(host.active):
        rounds.append(run_round(host, session))
        session.observe(rounds[-1])
    return session.stats, rounds


@pytest.mark.parametrize("sampling", [False, True])
@pytest.mark.parametrize(
    ("drafter", "tree"),
    [
        ("self", "sequoia:size=7,depth=3"),
        ("model", "chain:length=3"),
        ("prompt_lookup", "chain:length=4"),
        ("none", "auto"),
    ],
)
def test_the_sums_add_up(drafter, tree, sampling):
    stats, rounds = run(drafter, tree, sampling=sampling)
    assert stats.rounds == stats.target_forwards == len(rounds) == sum(stats.rounds_by_arm.values())
    assert sum(stats.tree_sizes.values()) == stats.rounds
    assert stats.emitted == 80 == sum(stats.emitted_by_row.values())
    assert stats.row_rounds == sum(stats.rounds_by_row.values()) == sum(r.batch.num_rows for r in rounds)
    assert stats.accepted == sum(stats.accepted_by_depth.values()) <= stats.proposed
    assert stats.proposed == sum(stats.proposed_by_depth.values())
    # every row and round adds a bonus token, unless the host cut it at the row's end
    cut = stats.accepted + stats.row_rounds - stats.emitted
    assert 0 <= cut <= len(PROMPTS)
    for depth in stats.proposed_by_depth:
        assert stats.accepted_by_depth[depth] <= stats.tried_by_depth[depth] <= stats.proposed_by_depth[depth]
        assert stats.accepted_by_depth[depth + 1] <= stats.accepted_by_depth[depth]
    assert stats.accepted_length == pytest.approx(80 / stats.row_rounds)
    assert stats.accepted_length_by_row == {row: 20 / stats.rounds_by_row[row] for row in range(4)}
    assert stats.acceptance_rate == (stats.accepted / stats.proposed if stats.proposed else 0.0)
    assert all(0 <= share <= 1 for share in stats.acceptance_by_depth.values())
    total = stats.seconds_draft + stats.seconds_verify + stats.seconds_commit + stats.seconds_other + stats.seconds_plan
    assert total == pytest.approx(sum(r.seconds.total for r in rounds))
    assert stats.draft_forwards == sum(r.plan.shape.depth for r in rounds if drafter in ("self", "model"))
    assert stats.kv_bytes_read > 0


def test_a_chain_counts_every_row_and_depth():
    stats, rounds = run("model", "chain:length=3")
    whole = [r for r in rounds if r.plan.shape.depth == 3]
    assert stats.proposed_by_depth[3] == sum(r.batch.num_rows for r in whole)
    assert stats.proposed_by_depth == stats.tried_by_depth


def test_acceptance_by_depth_counts_only_rounds_that_proposed_there():
    """Plain rounds between the others must not look like rejections."""
    host = host_of(TARGET, PROMPTS[:1], new_tokens=40)
    session = Speculator(drafter="model", draft_model=TARGET, tree="chain:length=2", controller="auto").open(host)
    while len(host.active):
        session.observe(run_round(host, session))
    assert session.stats.rounds_by_arm["none"] > 0
    assert session.stats.acceptance_by_depth.get(1, 1.0) == 1.0  # the target drafts for itself: all is accepted


def test_what_the_host_cut_does_not_count_as_accepted():
    host = host_of(TARGET, PROMPTS[:1], new_tokens=40)
    session = Speculator(drafter="model", draft_model=TARGET, tree="chain:length=3", controller="fixed").open(host)
    whole = run_round(host, session)
    assert int(whole.verdict.num_accepted[0]) == 3
    cut = type(whole)(*(getattr(whole, n) if n != "commit" else Commit([2]) for n in whole.__slots__))
    session.observe(cut)
    assert (session.stats.accepted, session.stats.emitted) == (2, 2)


def test_as_dict_is_json():
    host = host_of(TARGET, PROMPTS, names=["a", ("b", 2), 3, None])
    session = Speculator(drafter="model", draft_model=near(TARGET, 1), controller="fixed").open(host)
    while len(host.active):
        session.observe(run_round(host, session))
    read = json.loads(json.dumps(session.stats.as_dict()))
    assert read["emitted"] == 64
    assert set(read["emitted_by_row"]) == {"a", "('b', 2)", "3", "None"}
    assert read["acceptance_rate"] == session.stats.acceptance_rate


def test_empty_statistics_divide_nothing_by_zero():
    from specplug.stats import SpecStats

    stats = SpecStats()
    assert (stats.acceptance_rate, stats.accepted_length, stats.acceptance_by_depth) == (0.0, 0.0, {})
