"""What a server is asked for: requests that arrive at random, with prompts and outputs of mixed lengths.

Everything that is random of a request is a function of (seed, request number) and of nothing else: neither of the rate
of arrivals, which only stretches time, nor of who is in control. So every controller at every rate serves the same text
(common random numbers), and a difference between two is theirs.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

DEEPEST = 64  # draft tokens past a request's end that have a fate too: those before must not look worse for it
STRETCH = 64  # tokens over which a request's acceptance moves from one level to the next
CONCENTRATION = (20.0, 40.0)  # of the Beta laws: of a request's mean around the mix's, of its levels around its mean
MISS = -1


@dataclass(frozen=True, slots=True)
class Lengths:
    """A mix of lengths in tokens: each of `ranges` equally often, log-uniform between its bounds (both included)."""

    ranges: Sequence[tuple[int, int]]

    def draw(self, rng: random.Random) -> int:
        """One length."""
        low, high = self.ranges[int(rng.random() * len(self.ranges))]
        return min(high, int(math.exp(rng.uniform(math.log(low), math.log(high + 1)))))

    @property
    def longest(self) -> int:
        return max(high for _, high in self.ranges)


@dataclass(frozen=True, slots=True)
class Request:
    """`arrival` in seconds; `prompt` and `output` in tokens.

    `ranks[i]`: which child of its parent the target takes as output token i, were it drafted there (0: the most likely
    one; `MISS`: none of the draft's). `runs[i]`: how many tokens from i on are all of rank 0.
    """

    number: int
    arrival: float
    prompt: int
    output: int
    ranks: Sequence[int] = field(repr=False)
    runs: Sequence[int] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Mix:
    """What requests are like. `acceptance`: P(the child of rank k is the accepted one), the mean over all requests."""

    prompts: Lengths
    outputs: Lengths
    acceptance: Sequence[float]

    def requests(self, count: int, rate: float, seed: int) -> list[Request]:
        """`count` requests that arrive as a Poisson process of `rate` requests a second."""
        arrivals = random.Random(f"{seed}/arrivals")
        clock, found = 0.0, []
        for number in range(count):
            clock += arrivals.expovariate(1.0)
            found.append(self.request(number, clock / rate, seed))
        return found

    def request(self, number: int, arrival: float, seed: int) -> Request:
        """Request `number`, whenever it arrives."""
        rng = random.Random(f"{seed}/request/{number}")
        prompt, output = self.prompts.draw(rng), self.outputs.draw(rng)
        ranks = [self._rank(first, rng) for first in _levels(self.acceptance[0], output + DEEPEST, rng)]
        runs = [0] * (len(ranks) + 1)
        for place in reversed(range(len(ranks))):
            runs[place] = runs[place + 1] + 1 if ranks[place] == 0 else 0
        return Request(number, arrival, prompt, output, ranks, runs)

    def _rank(self, first: float, rng: random.Random) -> int:
        """Later ranks share what the first leaves as they do in the mean."""
        u = rng.random()
        if u < first:
            return 0
        left = (u - first) / (1 - first) * (1 - self.acceptance[0])
        rank = bisect_right(list(accumulate(self.acceptance[1:])), left) + 1
        return rank if rank < len(self.acceptance) else MISS


def _levels(mean: float, count: int, rng: random.Random) -> list[float]:
    """P(the first child is accepted) token by token: straight between levels `STRETCH` tokens apart. Its mean is `mean`."""
    own = _beta(mean, CONCENTRATION[0], rng)
    anchors = [_beta(own, CONCENTRATION[1], rng) for _ in range(count // STRETCH + 2)]
    found = []
    for place in range(count):
        index, rest = divmod(place, STRETCH)
        found.append(anchors[index] + (anchors[index + 1] - anchors[index]) * rest / STRETCH)
    return found


def _beta(mean: float, concentration: float, rng: random.Random) -> float:
    """A draw from the Beta law of this mean; its variance is mean (1 - mean) / (concentration + 1)."""
    if not 0 < mean < 1:
        return mean
    return rng.betavariate(mean * concentration, (1 - mean) * concentration)
