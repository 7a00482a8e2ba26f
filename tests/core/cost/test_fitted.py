"""Fitting times: against scipy's solver, on times that are known, and monotone always."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import nnls

from specplug import OptionError
from specplug.cost import Load
from specplug.cost.fitted import FittedCost, Sample, features, fit, held_out
from specplug.cost.least_squares import fit_nonnegative
from specplug.cost.profile import Profile, Seen, read_profile

LOADS = [
    Load(rows, rows * nodes, rows * context)
    for rows in (1, 2, 4, 8)
    for nodes in (1, 2, 5, 9)
    for context in (256, 1024, 4096)
]


def truth(load: Load) -> float:
    return 2e-3 + 1e-4 * load.tokens + 3e-8 * load.context + 2e-9 * load.pairs + 5e-4 * (1 - 1 / load.tokens)


def samples(noise: float = 0.0, part: str = "target") -> list[Sample]:
    dice = random.Random(0)
    return [Sample(part, load, truth(load) * dice.lognormvariate(0, noise)) for load in LOADS for _ in range(3)]


@given(st.integers(0, 1000), st.integers(1, 6), st.integers(6, 20))
def test_the_solver_agrees_with_scipys(seed, columns, rows):
    dice = random.Random(seed)
    matrix = [[dice.uniform(-1, 1) for _ in range(columns)] for _ in range(rows)]
    targets = [dice.uniform(0.5, 2) for _ in range(rows)]
    ours = np.array(fit_nonnegative(matrix, targets))
    scaled = np.array(matrix) / np.array(targets)[:, None]
    _, residual = nnls(scaled, np.ones(rows))
    assert (ours >= 0).all()
    assert np.linalg.norm(scaled @ ours - 1) == pytest.approx(residual, abs=1e-5)


def test_times_that_the_features_can_say_are_found():
    model = fit(samples())
    for load in [*LOADS, Load(3, 21, 6000), Load(6, 6, 12000)]:
        assert model.target(load) == pytest.approx(truth(load), rel=0.02)


def test_held_out_errors_are_about_the_noise():
    errors = held_out(samples(noise=0.05))["target"]
    assert errors.median < 0.08 and errors.median <= errors.worst < 0.4
    skewed = [Sample(s.part, s.load, s.seconds * (3 if s.load.tokens == 5 else 1)) for s in samples()]
    assert held_out(skewed)["target"].worst > 0.3  # a time that no feature explains is not explained away


@given(
    st.lists(st.floats(0, 1), min_size=9, max_size=9),
    st.tuples(st.integers(1, 64), st.integers(1, 30), st.integers(0, 10**6)),
    st.tuples(st.integers(0, 30), st.integers(0, 10**6)),
)
def test_a_larger_load_never_takes_less(coefficients, load, more):
    rows, nodes, context = load
    model = FittedCost({"target": coefficients})
    small, large = Load(rows, rows * nodes, context), Load(rows, rows * (nodes + more[0]), context + more[1])
    assert model.target(small) <= model.target(large)


def test_every_part_has_its_fit():
    model = fit([*samples(), *samples(part="ModelDraft"), Sample("overhead", Load(1, 1, 0), 1e-3)])
    assert model.draft("ModelDraft", Load(1, 1, 256)) == pytest.approx(truth(Load(1, 1, 256)), rel=0.02)
    assert model.overhead(1) == pytest.approx(1e-3)
    with pytest.raises(OptionError, match="No times of drafter 'Other' were measured; there are: ModelDraft"):
        model.draft("Other", Load(1, 1, 1))
    with pytest.raises(OptionError, match="No time of the target"):
        fit([Sample("overhead", Load(1, 1, 0), 1.0)])


def test_a_profile_comes_back_from_its_file(tmp_path):
    data = samples()
    made = Profile(
        "m",
        "cpu",
        "float32",
        "auto",
        fit(data),
        data,
        held_out(data),
        {"ModelDraft": {"greedy": Seen((0.7, 0.1), trials=50)}},
        {"torch": "2"},
        "today",
    )
    path = tmp_path / "profile.json"
    path.write_text(made.as_json())
    back = read_profile(path)
    assert back.as_json() == made.as_json()
    assert back.cost.target(LOADS[5]) == made.cost.target(LOADS[5]) and back.acceptance == made.acceptance
    back.check("m", "cpu", "float32")
    with pytest.raises(OptionError, match="measured with device 'cpu', this is 'cuda'; run `specplug calibrate`"):
        back.check("m", "cuda", "float32")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{}", "KeyError"),
        ("[1]", "not a profile"),
        ("no", "not a profile"),
        ('{"format": 7}', "format 7; this specplug reads 1"),
    ],
)
def test_what_is_no_profile_is_refused_by_name(text, reason, tmp_path):
    path = tmp_path / "p.json"
    path.write_text(text)
    with pytest.raises(OptionError, match=reason) as error:
        read_profile(path)
    assert "p.json" in str(error.value)
    with pytest.raises(OptionError, match="there is no file"):
        read_profile(tmp_path / "absent.json")


def test_features_are_as_many_as_coefficients():
    assert len(features(Load(2, 6, 100))) == len(fit(samples()).coefficients["target"])
