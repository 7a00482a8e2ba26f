"""What a run gave, and how two that served the same requests compare."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from specplug.simulation.server import Outcome


@dataclass(frozen=True, slots=True)
class Metrics:
    """One run. Seconds, tokens, tokens a second.

    `latency`: from arrival to the last token, mean over requests; `token_latency`: that over the request's tokens, mean
    over requests. `throughput`: tokens from the first arrival to the last request's end; `goodput`: tokens over the seconds
    in which the server had work. `batch`: mean rows while it had. `length`: draft tokens of the
    row that had most, mean over rounds.
    """

    latency: float
    token_latency: float
    p50: float
    p99: float
    throughput: float
    goodput: float
    batch: float
    rounds: int
    accepted_length: float  # tokens a row and round, the bonus included
    length: float
    plain_rounds: float  # share of the rounds that drafted nothing

    @classmethod
    def of(cls, outcome: Outcome) -> Metrics:
        """Of a run that has served at least one request."""
        latencies = sorted(served.latency for served in outcome.served)
        tokens = sum(served.tokens for served in outcome.served)
        rounds = max(1, outcome.rounds)
        return cls(
            latency=statistics.fmean(latencies),
            token_latency=statistics.fmean(served.latency / served.tokens for served in outcome.served),
            p50=quantile(latencies, 0.5),
            p99=quantile(latencies, 0.99),
            throughput=tokens / (outcome.end - min(served.arrival for served in outcome.served)),
            goodput=tokens / outcome.busy,
            batch=outcome.row_seconds / outcome.busy,
            rounds=outcome.rounds,
            accepted_length=outcome.decoded / max(1, outcome.row_rounds),
            length=outcome.drafted / rounds,
            plain_rounds=outcome.plain_rounds / rounds,
        )


@dataclass(frozen=True, slots=True)
class Interval:
    """A median over seeds, and the least and the most: of n seeds they enclose the median's true value with
    probability 1 - 2^(1 - n)."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Interval:
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True, slots=True)
class Comparison:
    """A controller at one rate beside those that do not choose, seed by seed.

    `speedup`: plain decoding's mean latency over its own. `best`: the best of plain and every fixed length in the
    median, by latency. `shortfall`: how far below the best of them, chosen anew for every seed, its speed is: 1 - the
    best's latency / its own (negative: above it). `goodput_shortfall`: the same of tokens over seconds of work.
    """

    speedup: Interval
    best: str
    best_speedup: Interval
    shortfall: Interval
    goodput_shortfall: Interval


def compare(name: str, runs: Mapping[str, Sequence[Metrics]], plain: str, simple: Sequence[str]) -> Comparison:
    """`runs`: by contestant, one for each seed, of one rate."""
    own, base = runs[name], runs[plain]
    seeds = range(len(own))
    least = [min(runs[other][seed].latency for other in simple) for seed in seeds]
    most = [max(runs[other][seed].goodput for other in simple) for seed in seeds]
    speedups = {
        other: Interval.of([base[seed].latency / runs[other][seed].latency for seed in seeds]) for other in simple
    }
    best = max(simple, key=lambda other: speedups[other].median)
    return Comparison(
        speedup=Interval.of([base[seed].latency / own[seed].latency for seed in seeds]),
        best=best,
        best_speedup=speedups[best],
        shortfall=Interval.of([1 - least[seed] / own[seed].latency for seed in seeds]),
        goodput_shortfall=Interval.of([1 - own[seed].goodput / most[seed] for seed in seeds]),
    )


def quantile(values: Sequence[float], share: float) -> float:
    """Of sorted `values`, straight between neighbours."""
    place = share * (len(values) - 1)
    low = int(place)
    high = min(low + 1, len(values) - 1)
    return values[low] + (values[high] - values[low]) * (place - low)
