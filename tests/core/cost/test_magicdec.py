from pathlib import Path

import pytest

from specplug.commands.compare_magicdec import report
from specplug.cost import magicdec
from specplug.cost.magicdec import LATENCIES, LLAMA_2, LLAMA_3, _equation, _solve, fit, latency, predict
from specplug.cost.roofline import Overheads

DOCS = Path(__file__).parents[3] / "docs" / "planner.md"


def test_the_published_rows():
    found = {(row.model, row.context, row.rows): (row.gamma, row.speedup) for row in (*LLAMA_2, *LLAMA_3)}
    assert found == {
        ("llama-2-7b", 8000, 32): (3, 1.18),
        ("llama-2-7b", 8000, 64): (3, 1.48),
        ("llama-2-7b", 8000, 128): (4, 1.63),
        ("llama-2-7b", 32000, 32): (4, 2.00),
        ("llama-3.1-8b", 32000, 32): (3, 1.22),
        ("llama-3.1-8b", 32000, 64): (3, 1.38),
        ("llama-3.1-8b", 32000, 128): (4, 1.47),
        ("llama-3.1-8b", 100000, 32): (5, 1.84),
    }


def test_the_documents_figures_are_what_the_command_prints():
    assert "\n".join(report()[0]) in DOCS.read_text()


def test_the_pure_roofline_promises_too_much_everywhere():
    assert all(predict(row, Overheads()).error > 0.4 for row in (*LLAMA_2, *LLAMA_3))


def test_overheads_fitted_on_one_model_predict_the_other():
    fitted = fit()
    assert all(abs(predict(row, fitted).error) < 0.06 for row in LLAMA_2)
    assert all(abs(predict(row, fitted).error) < 0.15 for row in LLAMA_3)
    errors = [abs(latency(rows, fitted) / seconds - 1) for rows, seconds in LATENCIES.items()]
    pure = [abs(latency(rows, Overheads()) / seconds - 1) for rows, seconds in LATENCIES.items()]
    assert all(small < large for small, large in zip(errors, pure, strict=True))


@pytest.mark.parametrize(("budget", "low", "high"), [(256, -8, 10), (512, -7, 14), (1024, -3, 24)])
def test_what_another_budget_would_change_is_documented(monkeypatch, budget, low, high):
    monkeypatch.setattr(magicdec, "BUDGET", budget)
    errors = [round(100 * predict(row, fit()).error) for row in LLAMA_3]
    assert (min(errors), max(errors)) == (low, high)
    text = " ".join(DOCS.read_text().split())
    assert budget == 512 or (f"with {budget} " in text and f"{low} to +{high} %" in text)


def test_the_fit_is_a_minimum():
    fitted = fit()

    def loss(overheads):
        return sum(predict(row, overheads).error ** 2 for row in LLAMA_2)

    # the weights of the linear residual are those of the solution: its minimum is the loss's, nearly
    for layer, token in ((0.7, 1), (1.4, 1), (1, 0.3), (1, 2.5), (0, 1), (1, 0)):
        assert loss(fitted) < loss(Overheads(fitted.layer * layer, fitted.token * token)) * 1.05


def test_an_equation_holds_where_the_prediction_is_the_published_one():
    """At overheads that give a row exactly, its equation is met."""
    row = LLAMA_2[0]
    low, high = 0.0, 1e-2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if predict(row, Overheads(middle)).error > 0 else (low, middle)
    a, _, c = _equation(row, Overheads(low))
    assert a * low == pytest.approx(c)


@pytest.mark.parametrize(
    ("equations", "x"),
    [
        ([(1.0, 0.0, 2.0), (0.0, 1.0, 3.0)], (2.0, 3.0)),
        ([(1.0, 0.0, -2.0), (0.0, 1.0, 3.0)], (0.0, 3.0)),
        ([(1.0, 0.0, 2.0), (0.0, 1.0, -3.0)], (2.0, 0.0)),
        ([(1.0, 0.0, -2.0), (0.0, 1.0, -3.0)], (0.0, 0.0)),
        ([(1.0, 2.0, 4.0), (1.0, 2.0, 4.0)], (0.0, 2.0)),
    ],
)
def test_no_overhead_is_negative(equations, x):
    a, b = _solve(equations)
    assert a >= 0 and b >= 0
    residual = sum((e[0] * a + e[1] * b - e[2]) ** 2 for e in equations)
    assert residual == pytest.approx(sum((e[0] * x[0] + e[1] * x[1] - e[2]) ** 2 for e in equations))
