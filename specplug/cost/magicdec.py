"""MagicDec's published speed-ups beside the roofline's and beside a roofline with two fitted overheads.

Published (arXiv 2408.11049; the authors' project page, github.com/Infini-AI-Lab/MagicDec index.html, "End-to-end
speculative decoding speedups ... on 8xA100s", has all rows but the one at 100k): self-speculation over a StreamingLLM
cache, 8 A100 in tensor parallel, PG-19. Acceptance is theirs too (project page), published for Llama-3.1-8B with a
budget of 512; neither the budget behind each row nor Llama-2's acceptance is published, so both are assumed to be those.
Latencies: that page's plot of plain decoding (static/js/plots/throughput_latency.js: Llama-2-7B-32K, 8000 tokens; the
batch is throughput times latency; where the plotted throughput repeats its neighbour's, the batch of 64 is told by the
speculative point beside it); they take no part in the fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from specplug.cost.choice import Budget, Case, Growth, best_chain, chains, plain_seconds, round_seconds
from specplug.cost.presets import device, model_shape
from specplug.cost.roofline import Overheads, Roofline

BUDGET = 512
ACCEPTANCE = {8000: 0.83, 32000: 0.81, 100000: 0.79}  # by context


@dataclass(frozen=True, slots=True)
class Published:
    """One row of the table: `gamma` is the best chain length they report."""

    model: str
    context: int
    rows: int
    gamma: int
    speedup: float


LLAMA_2 = (
    Published("llama-2-7b", 8000, 32, 3, 1.18),
    Published("llama-2-7b", 8000, 64, 3, 1.48),
    Published("llama-2-7b", 8000, 128, 4, 1.63),
    Published("llama-2-7b", 32000, 32, 4, 2.00),
)
LLAMA_3 = (
    Published("llama-3.1-8b", 32000, 32, 3, 1.22),
    Published("llama-3.1-8b", 32000, 64, 3, 1.38),
    Published("llama-3.1-8b", 32000, 128, 4, 1.47),
    Published("llama-3.1-8b", 100000, 32, 5, 1.84),
)
LATENCIES = {32: 16.53e-3, 48: 21.45e-3, 64: 31.49e-3, 128: 49.89e-3}  # s a step of plain decoding, by batch


@dataclass(frozen=True, slots=True)
class Predicted:
    """A published row and what a cost model says of it, at the published gamma and at the one it would choose."""

    row: Published
    speedup: float
    best_gamma: int
    best_speedup: float

    @property
    def error(self) -> float:
        """Relative: .1 is a tenth too much."""
        return self.speedup / self.row.speedup - 1


def cost_model(model: str, overheads: Overheads) -> Roofline:
    """The roofline of one of their targets on 8 A100."""
    return Roofline(model_shape(model), device("a100-80gb", 8), overheads=overheads)


def predict(row: Published, overheads: Overheads) -> Predicted:
    """The speed-up of a published set-up."""
    case = _case(row, overheads)
    speedup = _chain(row).expected * plain_seconds(case) / round_seconds(case, BUDGET, _chain(row))
    budgets: dict[Budget, float] = {BUDGET: ACCEPTANCE[row.context]}
    best = best_chain(case, budgets)
    return Predicted(row, speedup, best.depth, best.speedup)


def latency(rows: int, overheads: Overheads) -> float:
    """Seconds of a step of plain decoding where `LATENCIES` has the measured ones."""
    return plain_seconds(Case(cost_model("llama-2-7b", overheads), "self", rows, 8000))


def fit(rows: Sequence[Published] = LLAMA_2, rounds: int = 50) -> Overheads:
    """The two overheads, not negative, with the least squared relative errors of the speed-ups.

    speed-up * round(x) = tokens * plain(x) is linear in the overheads x; each row is weighted by 1 / (speed-up *
    round(x)) of the last solution, which makes the residual the relative error.
    """
    x = (0.0, 0.0)
    for _ in range(rounds):
        x = _solve([_equation(row, Overheads(*x)) for row in rows])
    return Overheads(*x)


def _equation(row: Published, overheads: Overheads) -> tuple[float, float, float]:
    """(a, b, c) of a * layer + b * token = c."""
    grown, tokens, layers = _chain(row), row.rows, model_shape(row.model).layers
    pure, fitted = _case(row, Overheads()), _case(row, overheads)
    weight = 1 / (row.speedup * round_seconds(fitted, BUDGET, grown))
    forwards, processed = (
        row.gamma + 1,
        tokens * (2 * row.gamma + 1),
    )  # gamma drafts of one token, a verify of gamma + 1
    return (
        weight * layers * (row.speedup * forwards - grown.expected),
        weight * layers * (row.speedup * processed - grown.expected * tokens),
        weight * (grown.expected * plain_seconds(pure) - row.speedup * round_seconds(pure, BUDGET, grown)),
    )


def _solve(equations: Sequence[tuple[float, float, float]]) -> tuple[float, float]:
    """Non-negative least squares of two unknowns: the inner solution, or the better of the two edges."""
    aa, ab, bb, ac, bc = (sum(e[i] * e[j] for e in equations) for i, j in ((0, 0), (0, 1), (1, 1), (0, 2), (1, 2)))
    inner = aa * bb - ab * ab
    if inner > 0:
        x, y = (ac * bb - bc * ab) / inner, (bc * aa - ac * ab) / inner
        if x >= 0 and y >= 0:
            return x, y
    edges = [(max(0.0, ac / aa) if aa else 0.0, 0.0), (0.0, max(0.0, bc / bb) if bb else 0.0)]
    return min(edges, key=lambda x: sum((e[0] * x[0] + e[1] * x[1] - e[2]) ** 2 for e in equations))


def _case(row: Published, overheads: Overheads) -> Case:
    return Case(cost_model(row.model, overheads), "self", row.rows, row.context)


def _chain(row: Published) -> Growth:
    return list(chains(ACCEPTANCE[row.context], row.gamma))[-1]
