import itertools
import random
import statistics

import pytest

from specplug.cost.choice import ranks
from specplug.simulation.workload import DEEPEST, MISS, Lengths, Mix

MIX = Mix(Lengths(((128, 1024), (4096, 4096))), Lengths(((64, 256),)), ranks(0.7))


def test_a_request_does_not_depend_on_the_rate_or_on_the_others():
    slow, fast = MIX.requests(20, 0.5, seed=3), MIX.requests(40, 8.0, seed=3)
    for one, other in zip(slow, fast, strict=False):
        assert (one.prompt, one.output, one.ranks) == (other.prompt, other.output, other.ranks)
        assert one.arrival == pytest.approx(16 * other.arrival)
    assert MIX.requests(20, 0.5, seed=3) == slow
    assert MIX.requests(20, 0.5, seed=4) != slow


def test_arrivals_are_poisson():
    arrivals = [request.arrival for request in MIX.requests(2000, 4.0, seed=0)]
    gaps = [b - a for a, b in itertools.pairwise(arrivals)]
    assert statistics.fmean(gaps) == pytest.approx(0.25, rel=0.1)
    assert statistics.stdev(gaps) == pytest.approx(0.25, rel=0.15)  # an exponential law's is its mean


def test_lengths_are_of_the_mix():
    requests = MIX.requests(400, 1.0, seed=1)
    assert all(128 <= request.prompt <= 1024 or request.prompt == 4096 for request in requests)
    assert all(64 <= request.output <= 256 for request in requests)
    assert sum(request.prompt == 4096 for request in requests) == pytest.approx(200, abs=50)
    assert Lengths(((7, 7),)).draw(random.Random(0)) == 7


def test_acceptance_has_the_mean_that_was_asked_for_differs_by_request_and_drifts():
    requests = MIX.requests(600, 1.0, seed=2)
    shares = [statistics.fmean(rank == 0 for rank in request.ranks) for request in requests]
    assert statistics.fmean(shares) == pytest.approx(0.7, abs=0.01)
    assert 0.05 < statistics.stdev(shares) < 0.2
    everything = [rank for request in requests for rank in request.ranks]
    for rank, wanted in enumerate(MIX.acceptance):
        assert statistics.fmean(found == rank for found in everything) == pytest.approx(wanted, abs=0.01)
    assert statistics.fmean(found == MISS for found in everything) == pytest.approx(1 - sum(MIX.acceptance), abs=0.01)


def test_runs_count_what_a_chain_gets():
    request = MIX.request(0, 0.0, seed=0)
    assert len(request.ranks) == request.output + DEEPEST
    for place in range(request.output):
        run = request.runs[place]
        assert all(rank == 0 for rank in request.ranks[place : place + run])
        assert place + run == len(request.ranks) or request.ranks[place + run] != 0


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_certain_acceptance(rate):
    request = Mix(MIX.prompts, MIX.outputs, (rate,)).request(0, 0.0, seed=0)
    assert set(request.ranks) == {0 if rate else MISS}
