import pytest

from specplug.cost.base import Load
from specplug.cost.fitted import TARGET, Sample, fit
from specplug.cost.profile import Profile


@pytest.fixture
def profile():
    """Times of a target on a small grid, one of them off."""

    def true(load):
        return 0.01 + 1e-4 * load.tokens + 1e-7 * load.context

    loads = [
        Load(rows, rows * width, rows * context)
        for rows in (1, 4, 16)
        for width in (1, 3, 5)
        for context in (256, 1024, 4096)
    ]
    samples = [Sample(TARGET, load, true(load)) for load in loads]
    samples[5] = Sample(TARGET, samples[5].load, 1.5 * samples[5].seconds)  # a spot that no smooth model has
    return Profile("m", "d", "float32", "torch", fit(samples), samples)
