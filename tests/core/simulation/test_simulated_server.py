"""The server's loop with the real controllers: nothing is lost, nothing differs but who decides, nothing leaks."""

import gc
import types

import pytest

from specplug.cost.choice import ranks
from specplug.cost.magicdec import fit
from specplug.cost.presets import device, model_shape
from specplug.cost.roofline import Roofline
from specplug.simulation.contestants import Contestant, contestants
from specplug.simulation.experiment import Setting, simulate
from specplug.simulation.grid import Grid
from specplug.simulation.host import SimulatedHost
from specplug.simulation.machine import Bent
from specplug.simulation.metrics import Metrics
from specplug.simulation.server import Server, accepted
from specplug.simulation.workload import Lengths, Mix, Request
from specplug.simulation.world import Ledger, World
from specplug.trees import Chain, Sequoia

TARGET, DRAFT = model_shape("llama-3.1-8b"), model_shape("llama-3.2-1b")
ROOFLINE = Roofline(TARGET, device("h200"), {"model": DRAFT}, fit(), 2e-4)


def setting(acceptance=0.7, tree=None, drafter="model", **options):
    return Setting(
        machine=lambda seed: Bent(ROOFLINE, seed),
        mix=Mix(Lengths(((64, 512),)), Lengths(((1, 64),)), ranks(acceptance)),
        drafter=drafter,
        budget=None,
        tree=tree or Chain(4).build(),
        host=SimulatedHost("test", TARGET.step_bytes, int(TARGET.kv_bytes_per_token)),
        **{"max_batch": 8} | options,
    )


def server_of(made, contestant, seed=0):
    ledger = Ledger()
    session = contestant.open(made.drafter, made.tree, made.host, ledger)
    drafts = contestant.name != "plain" and made.drafter == "model"
    return Server(made.world(seed), session, ledger, made.max_batch, drafts, drafts and made.eager)


@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", ["plain", "fixed:3", "goodput", "batch_table"])
@pytest.mark.parametrize("rate", [1.0, 50.0])
def test_every_request_gets_exactly_its_output(monkeypatch, name, rate, eager, padded):
    made = setting(eager=eager, tree=Sequoia(6, 3).build() if name == "goodput" else None)
    made.host.padded = padded
    (contestant,) = contestants(name)
    requests = made.mix.requests(40, rate, seed=0)
    committed, batches, commit = dict.fromkeys(range(40), 0), [], Server._commit

    def counting(server, batch, plan, seconds):
        rows = [(row, row.done) for row in server.rows]
        commit(server, batch, plan, seconds)
        batches.append(len(rows))
        for row, before in rows:
            assert row.done > before  # every row gets at least one token a round
            committed[row.request.number] += row.done - before

    monkeypatch.setattr(Server, "_commit", counting)
    server = server_of(made, contestant)
    outcome = server.serve(requests)
    most = max(batches)

    assert sorted(served.number for served in outcome.served) == list(range(40))
    assert all(committed[request.number] == request.output - 1 for request in requests)  # the prompt gives the first
    assert outcome.decoded == sum(request.output - 1 for request in requests)
    assert 1 <= most <= made.max_batch
    for served, request in zip(sorted(outcome.served, key=lambda s: s.number), requests, strict=True):
        assert served.arrival == request.arrival < served.first <= served.left <= outcome.end
        assert served.tokens == request.output
    assert outcome.busy <= outcome.end
    assert not server.rows and not server.ledger.read


def test_the_same_seed_gives_the_same_run():
    field, made = contestants("plain,fixed:2,goodput"), setting()
    first, again = (simulate(made, field, [4.0], 30, 2) for _ in range(2))
    assert first[0].runs == again[0].runs
    runs = first[0].runs["goodput"]
    assert runs[0] != runs[1]


def test_how_long_a_controller_thinks_here_changes_nothing(monkeypatch):
    field, made, now = contestants("goodput"), setting(), [0.0]
    quick = simulate(made, field, [4.0], 30, 2)

    def slow():
        now[0] += 1000.0
        return now[0]

    monkeypatch.setattr("specplug.controllers.goodput.perf_counter", slow)
    assert simulate(made, field, [4.0], 30, 2)[0].runs == quick[0].runs


def test_whoever_decides_a_token_has_the_same_fate():
    """What is accepted at a place of a request's text is the request's: a longer chain never gets less there."""
    request = setting().mix.request(3, 0.0, seed=5)
    for done in range(1, request.output):
        took = [len(accepted(request, done, Chain(length).build(), length)) for length in range(7)]
        assert took == [min(request.runs[done], length) for length in range(7)]
        tree = Sequoia(8, 4).build()
        limited = [len(accepted(request, done, tree, size)) for size in range(9)]
        assert limited[0] == 0 and limited == sorted(limited)
        if request.ranks[done] == 1:  # a second child, which no chain has
            assert limited[8] >= 1 and not took[6]


def test_a_good_draft_lowers_latency_at_low_load_and_a_useless_one_does_not():
    field = contestants("plain,fixed:3,goodput")
    good = simulate(setting(0.9), field, [0.5], 60, 1)[0].runs
    assert good["fixed:3"][0].latency < 0.8 * good["plain"][0].latency
    assert good["goodput"][0].latency < 0.9 * good["plain"][0].latency
    bad = simulate(setting(0.05), field, [0.5], 60, 1)[0].runs
    assert bad["fixed:3"][0].latency > 1.3 * bad["plain"][0].latency
    assert bad["goodput"][0].latency < 1.1 * bad["plain"][0].latency


def test_standby_pays_for_reading_prompts_and_plain_does_not():
    field = contestants("plain,standby")
    eager = simulate(setting(eager=True), field, [20.0], 40, 1)[0].runs
    assert eager["standby"][0].latency > eager["plain"][0].latency
    late = simulate(setting(eager=False), field, [20.0], 40, 1)[0].runs
    assert late["standby"] == late["plain"]


def test_latency_rises_with_the_rate():
    levels = simulate(setting(max_batch=4), contestants("plain"), [1.0, 10.0, 100.0], 60, 1)
    latencies = [level.runs["plain"][0].latency for level in levels]
    assert latencies == sorted(latencies) and latencies[-1] > 2 * latencies[0]
    assert levels[0].runs["plain"][0].batch < levels[-1].runs["plain"][0].batch <= 4


def reachable(start):
    """Everything that can be reached through references of objects, not through modules, classes and functions."""
    seen, waiting = {id(start): start}, [start]
    while waiting:
        for found in gc.get_referents(waiting.pop()):
            if id(found) not in seen and not isinstance(
                found, type | types.ModuleType | types.FunctionType | types.BuiltinFunctionType | types.CodeType
            ):
                seen[id(found)] = found
                waiting.append(found)
    return seen.values()


@pytest.mark.parametrize("name", ["goodput", "slo", "batch_table"])
def test_a_controller_cannot_reach_the_true_times_or_what_would_be_accepted(name):
    made = setting()
    server = server_of(made, Contestant(name))
    server.serve(made.mix.requests(10, 5.0, seed=0))
    world = (World, Grid, Bent, Roofline, Request, Server, Mix, Setting, Metrics)
    assert not [found for found in reachable(server.session.controller) if isinstance(found, world)]


def test_a_plan_s_rows_may_differ_in_size():
    """The first `sizes[b]` nodes of the shape are verified, and the whole shape is drafted."""
    made = setting()
    world = made.world(0)
    world.noise = world.drift = 0.0
    shape, contexts = Chain(4).build(), [300, 300]
    whole = world.round(shape, 10, contexts, [0, 0], 0.0)
    part = world.round(shape, 6, contexts, [0, 0], 0.0)
    assert part.verify <= whole.verify
    assert part.draft == pytest.approx(whole.draft)
    assert world.round(shape, 10, contexts, [300, 0], 0.0).draft > whole.draft
