import math
import statistics

import pytest

from specplug.cost.base import Load
from specplug.cost.fitted import TARGET
from specplug.cost.magicdec import fit as fit_overheads
from specplug.cost.presets import device, model_shape
from specplug.cost.roofline import Roofline
from specplug.errors import OptionError
from specplug.simulation.grid import CONTEXTS, ROWS, WIDTHS, Grid
from specplug.simulation.machine import Bent, Measured
from specplug.simulation.world import World
from specplug.trees import Chain

ROOFLINE = Roofline(
    model_shape("llama-3.1-8b"), device("h200"), {"model": model_shape("llama-3.2-1b")}, fit_overheads()
)


def test_a_grid_gives_its_points_and_lies_between_them():
    asked = []

    def measure(load):
        asked.append(load)
        return 1e-3 * load.rows**0.5 * (load.tokens / load.rows) * (load.context / load.rows) ** 0.25

    grid = Grid(measure)
    point = Load(ROWS[5], ROWS[5] * WIDTHS[3], ROWS[5] * CONTEXTS[4])
    assert grid.seconds(point) == pytest.approx(measure(point), rel=1e-9)
    for load in (
        Load(5, 15, 5000),
        Load(100, 900, 123456),
        Load(7, 7, 7 * 64),
    ):  # a power law is straight in logarithms
        assert grid.seconds(load) == pytest.approx(measure(load), rel=0.01)
    asked.clear()
    grid.seconds(Load(5, 15, 5000))
    assert not asked  # known already
    assert grid.seconds(Load(10**4, 10**4, 10**4)) == pytest.approx(grid.seconds(Load(512, 512, 512)))


def test_a_bent_roofline_is_no_roofline_but_near_it():
    loads = [Load(rows, rows * width, rows * 2048) for rows in (1, 4, 16, 64) for width in (1, 3, 5, 9, 17)]
    ratios = [Bent(ROOFLINE, 1).seconds(TARGET, load) / ROOFLINE.target(load) for load in loads]
    assert min(ratios) > 0.95 and max(ratios) < 1.5
    assert statistics.stdev(map(math.log, ratios)) > 0.03
    assert [Bent(ROOFLINE, 1).seconds(TARGET, load) for load in loads] == [
        Bent(ROOFLINE, 1).seconds(TARGET, load) for load in loads
    ]
    assert Bent(ROOFLINE, 1).seconds(TARGET, loads[0]) != Bent(ROOFLINE, 2).seconds(TARGET, loads[0])
    assert Bent(ROOFLINE).seconds("prompt_lookup", loads[0]) == 0.0


def test_a_measured_machine_gives_back_what_was_measured_and_interpolates(profile):
    machine = Measured.of(profile)
    for sample in profile.samples:
        assert machine.seconds(TARGET, sample.load) == pytest.approx(sample.seconds, rel=1e-3)
    assert machine.seconds(TARGET, Load(8, 16, 8 * 2048)) == pytest.approx(0.01 + 16e-4 + 8 * 2048e-7, rel=0.2)
    with pytest.raises(OptionError, match="no times of 'self'"):
        machine.seconds("self", Load(1, 1, 1))


def test_noise_and_drift_are_the_same_for_all_and_average_out():
    worlds = [World(Bent(ROOFLINE), "model", None, seed=7) for _ in range(2)]
    rounds = [
        [world.round(Chain(2).build(), 6, [500, 600], [1, 1], 0.1 * i).total for i in range(500)] for world in worlds
    ]
    assert rounds[0] == rounds[1]
    world = World(Bent(ROOFLINE), "model", None, seed=7, noise=0.0, drift=0.0)
    still = world.round(Chain(2).build(), 6, [500, 600], [1, 1], 0.0).total
    assert statistics.median(rounds[0]) == pytest.approx(still, rel=0.06)
    assert max(rounds[0]) / min(rounds[0]) > 1.15
