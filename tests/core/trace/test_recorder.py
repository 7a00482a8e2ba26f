"""What a recording holds, against the rounds themselves, the statistics and laws written down independently."""

import threading
from dataclasses import fields, is_dataclass, replace

import pytest
import torch

from core.test_round import PROMPTS, host_of, speculator
from core.tools import TableHost, near, plain_greedy, table
from specplug import Controller, Drafter, DraftRequest, Plan, ProposalError, Speculator, TreeBuilder, run_round, trace
from specplug.errors import OptionError
from specplug.tree import ROOT_ONLY, TreeShape, fill_shape
from specplug.trees import Chain, KAry, Sequoia
from specplug_conformance.request import Request
from specplug_conformance.toy.host import ToyHost
from specplug_conformance.toy.model import make_model

TARGET = table(6, 1)
DRAFT = near(TARGET, 77)  # of drafter="model" in `speculator`


class Irregular(TreeBuilder):
    """Three inner nodes side by side with 2, 1 and 2 children."""

    def build(self):
        return TreeShape((-1, 0, 0, 0, 1, 1, 2, 3, 3))


SETUPS = [
    ("model", Irregular()),
    ("model", "sequoia:size=9,depth=4"),
    ("self", "kary:branch=2,depth=2"),
    ("prompt_lookup", "chain:length=4"),
    ("none", "auto"),
]


def generate(host, spec):
    """All rounds of a generation, as they were."""
    session, rounds = spec.open(host), []
    while len(host.active):
        rounds.append(run_round(host, session))
        session.observe(rounds[-1])
    return session, rounds


def recorded(drafter, tree, prompts=PROMPTS, controller="fixed", **options):
    host = host_of(TARGET, prompts, **{"new_tokens": [17, 5, 1, 23][: len(prompts)]} | options)
    with trace.recording() as recording:
        session, rounds = generate(host, speculator(drafter, tree, TARGET, controller=controller))
    (generation,) = recording.generations
    return host, session, rounds, generation


# --- totals, origins, the text


@pytest.mark.parametrize("sampling", [False, True])
@pytest.mark.parametrize(("drafter", "tree"), [*SETUPS, ("model", "auto")])
def test_totals_are_those_of_the_statistics_and_the_text_is_the_rows_own(drafter, tree, sampling):
    controller = "auto" if tree == "auto" else "fixed"
    host, session, rounds, generation = recorded(
        drafter, tree, sampling=sampling, controller=controller, starts=[0, 2, 1, 3]
    )
    every = [row for finished in generation.rounds for row in finished.rows.values()]
    stats = session.stats
    assert sum(row.accepted for row in every) == stats.accepted
    assert sum(len(row.tokens) for row in every) == stats.emitted == 17 + 5 + 1 + 23
    assert sum(row.proposed for row in every) == stats.proposed
    assert (len(generation.rounds), len(every)) == (stats.rounds, stats.row_rounds)
    assert [finished.arm for finished in generation.rounds] == [r.plan.arm.label for r in rounds]
    assert [finished.context for finished in generation.rounds] == [r.batch.context for r in rounds]
    for row, prompt in enumerate(PROMPTS):
        root, *tokens = generation.tokens(row)
        assert [t.token for t in tokens] == host.result(row)
        assert (root.token, root.origin, root.round) == (prompt[-1], "plain", None)
        assert generation.rows[row].prompt == tuple(prompt[:-1])


@pytest.mark.parametrize("drafter", ["model", "prompt_lookup", "none"])
def test_origins_tell_who_gave_a_token(drafter):
    _, _, rounds, generation = recorded(drafter, "chain:length=3", new_tokens=40)
    seen = set()
    for number, finished in enumerate(rounds):
        valid = finished.trees.valid
        for place, row in enumerate(finished.batch.rows):
            proposed = finished.trees.num_nodes - 1 if valid is None else int(valid[place, 1:].sum())
            accepted = int(finished.verdict.num_accepted[place])
            mine = [t for t in generation.tokens(row) if t.round == number]
            assert len(mine) == finished.commit.counts[place]
            for i, token in enumerate(mine):
                expected = "accepted" if i < accepted else "bonus" if proposed else "plain"
                assert token.origin == expected
                seen.add(expected)
    assert seen == {"model": {"accepted", "bonus", "plain"}, "prompt_lookup": {"accepted", "bonus", "plain"}}.get(
        drafter, {"plain"}
    )


def test_a_round_that_the_host_cuts_shows_what_was_kept():
    """End tokens in the midst of what was accepted: the rest is counted, not shown."""
    model = make_model(3, 7, torch.float64)
    seen = []
    for end in range(7):
        host = ToyHost(model, Request(((1, 2, 3),), new_tokens=30, end_tokens=(end,)))
        host.rows = [0]
        with trace.recording() as recording:
            session = Speculator(drafter="self", kv_policy="full", tree="chain:length=5", controller="fixed").open(host)
            while host.rows:
                finished = run_round(host, session)
                session.observe(finished)
        (generation,) = recording.generations
        last = generation.rounds[-1].rows[0]
        assert last.tokens == tuple(finished.verdict.tokens(finished.trees)[0, : finished.commit.counts[0]].tolist())
        assert last.cut == int(finished.verdict.num_accepted[0]) + 1 - finished.commit.counts[0]
        assert len(last.path) == len(last.alternatives) == len(last.tokens)
        assert (last.bonus is None) == (last.cut > 0)
        assert last.origins == ("accepted",) * len(last.tokens) if last.cut else last.origins[-1] == "bonus"
        assert sum(row.accepted for r in generation.rounds for row in r.rows.values()) == session.stats.accepted
        seen.append(last.cut)
    assert max(seen) > 0


# --- the tree and its probabilities


def probabilities_of(host, mine, before, law):
    """By node, the probability of its token under `law[token before, token]` of the path it hangs on."""
    found, behind = [None], {0: (before, mine.nodes[0].token)}
    for i, node in enumerate(mine.nodes[1:], start=1):
        pair = behind[node.parent]
        found.append(float(law[pair][node.token]))
        behind[i] = (pair[1], node.token)
    return found, behind


@pytest.mark.parametrize("sampling", [False, True])
@pytest.mark.parametrize(("drafter", "tree"), SETUPS)
def test_both_models_probabilities_and_the_path(drafter, tree, sampling):
    """Against the softmax of the tables that draft and target are made of."""
    host, _, rounds, generation = recorded(drafter, tree, sampling=sampling, new_tokens=20)
    target, draft = TARGET.softmax(-1), (DRAFT if drafter == "model" else host.draft).softmax(-1)
    ends = {row: len(prompt) for row, prompt in enumerate(PROMPTS)}
    for finished, kept in zip(rounds, generation.rounds, strict=True):
        assert kept.sampled == sampling and kept.has_draft == (drafter in ("model", "self"))
        for place, row in enumerate(finished.batch.rows):
            mine, end = kept.rows[row], ends[row]
            assert mine.nodes[0].parent == -1 and mine.nodes[0].token == int(host.text[row, end - 1])
            expected, behind = probabilities_of(host, mine, int(host.text[row, end - 2]), target)
            assert [n.target for n in mine.nodes] == pytest.approx(expected, abs=1e-6)
            if drafter in ("model", "self"):
                expected, _ = probabilities_of(host, mine, int(host.text[row, end - 2]), draft)
                assert [n.draft for n in mine.nodes] == pytest.approx(expected, abs=1e-6)
            else:
                assert {n.draft for n in mine.nodes} == {None}
            check_path(mine, finished, place, behind, target)
            ends[row] += finished.commit.counts[place]


def check_path(mine, finished, place, behind, target):
    assert mine.path[0] == 0 and all(mine.nodes[b].parent == a for a, b in zip(mine.path, mine.path[1:], strict=False))
    accepted = [i for i, node in enumerate(mine.nodes) if node.accepted]
    assert list(mine.path[1:]) == accepted[: len(mine.path) - 1]
    assert len(accepted) == len(mine.tokens) - (not mine.cut)  # what was cut stood behind the last kept node
    assert [mine.nodes[i].token for i in accepted] == list(mine.tokens[: len(accepted)])
    for node, alternatives, token in zip(mine.path, mine.alternatives, mine.tokens, strict=True):
        law = target[behind[node]]
        best = law.topk(3)
        assert [t for t, _ in alternatives] == best.indices.tolist()
        assert [p for _, p in alternatives] == pytest.approx(best.values.tolist(), abs=1e-6)
        assert finished.targets.tokens is None or token == alternatives[0][0]
    if mine.bonus is not None:
        assert mine.bonus == pytest.approx(float(target[behind[mine.path[-1]]][mine.tokens[-1]]), abs=1e-6)


@pytest.mark.parametrize("sampling", [False, True])
def test_grown_trees_tell_their_probabilities(sampling):
    """The target drafts for itself with its whole cache: what it says as a draft is what it says as a target."""
    host = ToyHost(make_model(3, 7, torch.float64), Request(((1, 2, 3), (4, 5)), seeds=(1, 2) if sampling else None))
    host.rows = [0, 1]
    with trace.recording() as recording:
        spec = Speculator(drafter="self", kv_policy="full", tree="dynamic:size=8,depth=3", controller="fixed")
        session = spec.open(host)
        while host.rows:
            session.observe(run_round(host, session))
    (generation,) = recording.generations
    trees = [row for finished in generation.rounds for row in finished.rows.values() if row.proposed]
    assert len({tuple(n.parent for n in row.nodes) for row in trees}) > 1
    for row in trees:
        assert (row.nodes[0].draft, row.nodes[0].target) == (None, None)
        assert [n.draft for n in row.nodes[1:]] == pytest.approx([n.target for n in row.nodes[1:]], rel=1e-4)


def test_a_grown_tree_tells_each_nodes_own_probability():
    from types import SimpleNamespace

    from core.test_grow import PathRunner, law
    from specplug.drafters.grow import grow
    from specplug.trees import Dynamic

    batch = SimpleNamespace(roots=torch.tensor([3, 7]), num_rows=2, sampling=False)
    trees = grow(None, PathRunner(), DraftRequest(batch, Dynamic(9, 4).build(), grown=True, explain=True))
    assert trees.confidence.dtype == torch.float32 and trees.confidence[:, 0].isnan().all()
    for row in range(2):
        for node in range(1, trees.num_nodes):
            path = trees.tokens[row][trees.ancestors[row, node]].tolist()
            assert float(trees.confidence[row, node]) == pytest.approx(
                float(law(row, path[:-1]).softmax(-1)[path[-1]]), rel=1e-4
            )


class Sizes(Controller):
    """Rows get 4, 1 and 0 draft tokens of the arm's tree."""

    def plan(self, batch):
        arm = self.arms[0]
        return Plan(arm, arm.shape, tuple((4, 1, 0)[row % 3] for row in batch.rows))


@pytest.mark.parametrize("shape", [Sequoia(7, 3), KAry(2, 2)])
def test_rows_that_get_less_of_a_tree_show_what_they_got(shape):
    host, _, rounds, generation = recorded("model", shape, prompts=PROMPTS[:3], controller=Sizes(), new_tokens=12)
    law, target = DRAFT.softmax(-1), TARGET.softmax(-1)
    ends = {row: len(prompt) for row, prompt in enumerate(PROMPTS[:3])}
    built = shape.build()
    for finished, kept in zip(rounds, generation.rounds, strict=True):
        assert kept.size == built.size
        for place, row in enumerate(finished.batch.rows):
            mine, before = kept.rows[row], int(host.text[row, ends[row] - 2])
            wanted = [n for n in range(built.num_nodes) if built.priority[n] <= (4, 1, 0)[row]]
            assert [n.token for n in mine.nodes] == finished.trees.tokens[place, wanted].tolist()
            assert [n.draft for n in mine.nodes] == pytest.approx(
                probabilities_of(host, mine, before, law)[0], abs=1e-6
            )
            assert [n.target for n in mine.nodes] == pytest.approx(
                probabilities_of(host, mine, before, target)[0], abs=1e-6
            )
            assert row != 2 or set(mine.origins) == {"plain"}
            ends[row] += finished.commit.counts[place]


class Lawful(Drafter):
    """Gives the law it draws from and says nothing more, as a stranger's may; its second node it simply puts there."""

    def draft(self, request):
        batch, shape = request.batch, TreeShape((-1, 0, 0))
        law = torch.full((batch.num_rows, 1, self.host.vocab_size), 0.1)
        law[..., 3] = 1 - 0.1 * (self.host.vocab_size - 1)
        tokens = torch.tensor([[3, 2]]).expand(batch.num_rows, -1)
        trees = fill_shape(shape, torch.cat([batch.roots[:, None], tokens], 1), law)
        return replace(trees, law_index=torch.tensor([[-1, 0, -1]]))


def test_a_drafter_that_gives_only_its_laws_is_understood():
    _, _, _, generation = recorded(Lawful(), KAry(2, 1), prompts=PROMPTS[:1], sampling=True, new_tokens=9)
    trees = [f.rows[0] for f in generation.rounds if f.rows[0].proposed]
    assert trees
    for row in trees:
        assert row.nodes[1].draft == pytest.approx(0.5) and row.nodes[2].draft is None


def test_confidence_of_another_shape_is_refused():
    host = host_of(TARGET, PROMPTS)
    session = speculator("self", "chain:length=2").open(host)
    drafter = session.arms[0].drafter
    real = drafter.draft
    drafter.draft = lambda request: replace(real(request), confidence=torch.zeros(4, 2))
    with pytest.raises(ProposalError, match=r"confidence of \(4, 2\) for tokens of \(4, 3\)"):
        run_round(host, session)


# --- who records, and what it costs


@pytest.mark.parametrize("sampling", [False, True])
@pytest.mark.parametrize("tree", ["sequoia:size=9,depth=4", "chain:length=3"])
def test_recording_changes_nothing(tree, sampling):
    host, session, rounds, _ = recorded("model", tree, sampling=sampling)
    other = host_of(TARGET, PROMPTS, new_tokens=[17, 5, 1, 23], sampling=sampling)
    silent, plain = generate(other, speculator("model", tree, TARGET))
    assert torch.equal(host.text, other.text)
    assert silent.recorder is None and session.recorder is not None
    for ours, theirs in zip(rounds, plain, strict=True):
        assert torch.equal(ours.trees.tokens, theirs.trees.tokens)
        assert ours.logits is not None and ours.trees.confidence is not None
        assert theirs.logits is None and theirs.trees.confidence is None


def test_a_drafter_is_asked_to_explain_only_for_a_recording():
    asked = []

    class Asked(Drafter):
        def draft(self, request):
            asked.append(request.explain)
            return fill_shape(ROOT_ONLY, request.batch.roots[:, None])

    for active in (False, True):
        host = host_of(TARGET, PROMPTS[:1], new_tokens=2)
        spec = Speculator(drafter=Asked(), tree=Chain(1), controller="fixed")
        if active:
            with trace.recording():
                generate(host, spec)
        else:
            generate(host, spec)
    assert asked == [False, False, True, True]


def test_a_generation_that_began_before_is_not_recorded_and_one_that_began_within_is_to_its_end():
    host = host_of(TARGET, PROMPTS)
    early = speculator("self", "chain:length=2").open(host)
    with trace.recording() as recording:
        early.observe(run_round(host, early))
        late = speculator("self", "chain:length=2").open(host)
    late.observe(run_round(host, late))
    assert [len(generation.rounds) for generation in recording.generations] == [1]


def test_a_recording_ends_with_its_block_also_when_that_fails():
    with pytest.raises(OptionError), trace.recording():
        raise OptionError("no")
    assert speculator("none").open(host_of(TARGET, PROMPTS)).recorder is None


def test_generations_and_nested_recordings_are_kept_apart():
    """Both have a row 0."""
    with trace.recording() as outer:
        generate(host_of(TARGET, PROMPTS[:1]), speculator("self", "chain:length=2"))
        with trace.recording() as inner:
            generate(host_of(TARGET, PROMPTS[1:2]), speculator("none"))
        generate(host_of(TARGET, PROMPTS[2:3]), speculator("prompt_lookup", "chain:length=2"))
    texts = [[t.token for t in g.tokens(0)][1:] for g in (*outer.generations, *inner.generations)]
    assert texts == [plain_greedy(TARGET, PROMPTS[i], 16) for i in (0, 2, 1)]
    assert [g.arms[0].split("/")[0] for g in outer.generations] == ["SelfDraft", "PromptLookup"]


def test_threads_are_kept_apart():
    """Three threads at once, round by round: two record each its own, one does not."""
    barrier, found = threading.Barrier(3), {}

    def work(row, records):
        def run():
            session, host = speculator("self", "chain:length=2").open(hosts[row]), hosts[row]
            for _ in range(4):
                barrier.wait(60)
                session.observe(run_round(host, session))
            return session

        if records:
            with trace.recording() as recording:
                run()
            found[row] = recording
        else:
            found[row] = run().recorder

    hosts = [host_of(TARGET, [PROMPTS[row]], names=[f"row {row}"]) for row in range(3)]
    threads = [threading.Thread(target=work, args=(row, row < 2)) for row in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[2] is None
    for row in range(2):
        (generation,) = found[row].generations
        assert list(generation.rows) == [f"row {row}"] and len(generation.rounds) == 4


def test_rows_that_come_and_go_keep_their_own_rounds():
    host = TableHost(TARGET, near(TARGET, 5), PROMPTS, new_tokens=20, names=["a", "b", "c", "d"])
    generator = torch.Generator().manual_seed(1)
    with trace.recording() as recording:
        session, last = speculator("model", "sequoia:size=6,depth=3", TARGET).open(host), None
        while bool((waiting := host.ends < host.stops).any()):
            chosen = waiting & (torch.rand(4, generator=generator) < 0.5)
            host.active = torch.nonzero(chosen if bool(chosen.any()) else waiting).flatten().flip(0)
            newest = run_round(host, session)
            if last is not None:
                session.observe(last)  # a round late
            last = newest
        session.observe(last)
    (generation,) = recording.generations
    assert {len(finished.rows) for finished in generation.rounds} > {1, 2}
    for row, name in enumerate("abcd"):
        assert [t.token for t in generation.tokens(name)][1:] == plain_greedy(TARGET, PROMPTS[row], 20)


def test_nothing_but_plain_values_is_kept():
    def check(value):
        if is_dataclass(value):
            for field in fields(value):
                check(getattr(value, field.name))
        elif isinstance(value, dict):
            for key, item in value.items():
                check(key)
                check(item)
        elif isinstance(value, tuple | list):
            for item in value:
                check(item)
        else:
            assert value is None or type(value) in (int, float, str, bool), repr(value)

    _, _, _, generation = recorded("model", "sequoia:size=6,depth=3", sampling=True)
    assert len(generation.rounds) > 3
    check(generation)


def test_seconds_and_set_up_are_the_rounds_own():
    _, _, rounds, generation = recorded("model", "sequoia:size=6,depth=3")
    assert (generation.controller, generation.identity) == ("Fixed", ("table", "cpu", "float32"))
    assert generation.arms == (rounds[0].plan.arm.label,)
    for finished, kept in zip(rounds, generation.rounds, strict=True):
        assert kept.seconds == {
            part: getattr(finished.seconds, part) for part in ("draft", "verify", "commit", "other", "plan")
        }
        assert sum(kept.seconds.values()) == pytest.approx(finished.seconds.total)
        assert (kept.size, kept.depth) == (finished.plan.shape.size, finished.plan.shape.depth)
        assert (kept.reason, kept.predicted_tokens, kept.predicted_seconds) == ("", None, None)
