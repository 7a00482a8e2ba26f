"""The draws: uniform, independent, a function of (seed, position, stream, index) alone.

False alarms: every chi-square and Kolmogorov-Smirnov test below fails a perfect generator with probability 1e-5; the
seeds are fixed, so a test that passes once passes always.
"""

import itertools

import pytest
import torch
from scipy import stats

from specplug.random import (
    DRAFT_STREAM,
    VERIFY_STREAM,
    draw,
    draw_without_replacement,
    row_seeds,
    uniforms,
)
from specplug_conformance.exact import orders

ALARM = 1e-5
CPU = torch.device("cpu")


def grid(rows=64, positions=64, stream=VERIFY_STREAM, count=8):
    seeds = row_seeds(3, rows, CPU).repeat_interleave(positions)
    return uniforms(seeds, torch.arange(positions).repeat(rows), stream, count).view(rows, positions, count)


def test_open_interval_and_dtype():
    u = grid()
    assert u.dtype == torch.float64
    assert 0 < u.min() < u.max() < 1


@pytest.mark.parametrize("stream", [DRAFT_STREAM, VERIFY_STREAM, DRAFT_STREAM + (10_000_000 << 8), 2**62])
def test_uniform(stream):
    u = grid(stream=stream).flatten()
    assert stats.kstest(u.numpy(), "uniform").pvalue > ALARM
    assert stats.chisquare(torch.histc(u.float(), 256, 0, 1).numpy()).pvalue > ALARM


def test_every_bit_is_fair():
    bits = (grid().flatten() * 2**52).long()
    for place in range(52):
        ones = int(((bits >> place) & 1).sum())
        assert stats.binomtest(ones, bits.numel(), 0.5).pvalue > ALARM


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_neighbours_are_independent(axis):
    """Rows, positions and indices: pairs of neighbours fill the unit square evenly."""
    u = grid().transpose(0, axis)
    pairs = (u[:-1] * 16).long() * 16 + (u[1:] * 16).long()
    assert stats.chisquare(torch.bincount(pairs.flatten(), minlength=256).numpy()).pvalue > ALARM


def test_streams_are_independent():
    one, other = grid(stream=VERIFY_STREAM), grid(stream=DRAFT_STREAM)
    pairs = (one * 16).long() * 16 + (other * 16).long()
    assert stats.chisquare(torch.bincount(pairs.flatten(), minlength=256).numpy()).pvalue > ALARM


def test_small_neighbouring_seeds_are_independent():
    seeds = torch.arange(256).repeat_interleave(16)
    u = uniforms(seeds, torch.arange(16).repeat(256), VERIFY_STREAM, 2).view(256, 32)
    pairs = (u[:-1] * 16).long() * 16 + (u[1:] * 16).long()
    assert stats.chisquare(torch.bincount(pairs.flatten(), minlength=256).numpy()).pvalue > ALARM


def test_no_number_is_drawn_twice():
    """Over rows, positions, every purpose, the levels of a draft and indices: 2**21 draws of 52 bits, none equal.

    Two equal ones among perfect draws have probability 5e-4; a shared counter would give hundreds.
    """
    streams = [VERIFY_STREAM, *(DRAFT_STREAM + (offset << 8) for offset in (0, 1, 255, 256, 65536))]
    seeds = row_seeds(0, 32, CPU).repeat_interleave(64)
    positions = torch.arange(64).repeat(32)
    drawn = torch.cat([uniforms(seeds, positions, stream, 171).flatten() for stream in streams])
    assert drawn.numel() > 2**21
    assert drawn.unique().numel() == drawn.numel()


def test_levels_of_a_draft_have_streams_of_their_own():
    """A level's stream is DRAFT_STREAM + 256 * (numbers used before), so it is no level's nor purpose's again."""
    sizes = [1 * 50, 3 * 50, 6 * 50, 6 * 50]
    streams = [DRAFT_STREAM + (offset << 8) for offset in itertools.accumulate([0, *sizes])]
    assert len({*streams, VERIFY_STREAM}) == len(streams) + 1


def test_alone_as_in_a_batch():
    seeds, positions = row_seeds(9, 5, CPU), torch.tensor([3, 1, 4, 1, 5])
    together = uniforms(seeds, positions, VERIFY_STREAM, 7)
    for row in range(5):
        alone = uniforms(seeds[row : row + 1], positions[row : row + 1], VERIFY_STREAM, 7)
        assert torch.equal(alone[0], together[row])
    # fewer numbers are the first of more
    assert torch.equal(uniforms(seeds, positions, VERIFY_STREAM, 3), together[:, :3])


def test_row_seeds_are_the_rows_own():
    assert torch.equal(row_seeds(7, 3, CPU), row_seeds(7, 9, CPU)[:3])
    assert row_seeds(7, 1000, CPU).unique().numel() == 1000
    for seed in (0, -1, 2**63 - 1, 2**64 - 1, -(2**63)):  # whatever a framework's generator gives
        assert row_seeds(seed, 2, CPU).dtype == torch.int64


def mix(x):
    """SplitMix64's output function on unbounded integers, as published."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % 2**64
    return x ^ (x >> 31)


@pytest.mark.parametrize("stream", [DRAFT_STREAM, VERIFY_STREAM, DRAFT_STREAM + (7_000_000 << 8)])
def test_numbers_are_those_of_the_published_mixer(stream):
    """int64 arithmetic that wraps, against unbounded integers. Seeded output is what users keep: it must not change."""
    golden = 0x9E3779B97F4A7C15
    seeds, positions = [0, 42, -5, 2**63 - 1], [0, 7, 31_000, 5]
    u = uniforms(torch.tensor(seeds), torch.tensor(positions), stream, 3)
    for row, (seed, position) in enumerate(zip(seeds, positions, strict=True)):
        key = mix((mix((seed + golden * (position + 1)) % 2**64) + golden * stream) % 2**64)
        expected = [((mix((key + golden * (i + 1)) % 2**64) >> 12) + 0.5) / 2**52 for i in range(3)]
        assert u[row].tolist() == expected
    assert row_seeds(5, 2, CPU).tolist() == [
        (m + 2**63) % 2**64 - 2**63 for m in (mix(5 + golden), mix((5 + 2 * golden) % 2**64))
    ]


def test_draw_follows_the_weights():
    weights = torch.tensor([0.0, 3.0, 0.0, 1.0, 4.0, 0.0])
    u = uniforms(row_seeds(1, 40_000, CPU), torch.zeros(40_000, dtype=torch.int64), VERIFY_STREAM, 1)[:, 0]
    counts = torch.bincount(draw(weights.expand(40_000, -1), u), minlength=6)
    assert counts[[0, 2, 5]].tolist() == [0, 0, 0]
    assert stats.chisquare(counts[[1, 3, 4]].numpy(), [15_000, 5_000, 20_000]).pvalue > ALARM


@pytest.mark.parametrize("u", [2.0**-53, 0.25, 0.5, 1 - 2.0**-53])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 3.0, 1e30])
def test_draw_never_takes_weight_zero(u, scale):
    """Also at the ends of the interval, where products round, and with masses that are no powers of two."""
    for support in itertools.product([0.0, 0.1, 0.7], repeat=4):
        if sum(support):
            weights = torch.tensor([support]) * scale
            token = int(draw(weights, torch.tensor([u], dtype=torch.float64)))
            assert weights[0, token] > 0


def test_draw_integrates_to_the_law_exactly():
    """Thresholds of the inversion are the running sums: just below and just above each, the index changes."""
    weights = torch.tensor([[0.125, 0.0, 0.5, 0.375]])
    edges = [0.125, 0.625]
    below = [int(draw(weights, torch.tensor([edge - 1e-12], dtype=torch.float64))) for edge in edges]
    above = [int(draw(weights, torch.tensor([edge + 1e-12], dtype=torch.float64))) for edge in edges]
    assert (below, above) == ([0, 2], [2, 3])


@pytest.mark.parametrize("weights", [(0.5, 0.3, 0.2), (0.7, 0.0, 0.2, 0.1), (0.97, 0.01, 0.01, 0.01)])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_draw_without_replacement_follows_the_exact_law(weights, count):
    rows = 30_000
    law = torch.tensor(weights)
    noise = uniforms(row_seeds(2, rows, CPU), torch.zeros(rows, dtype=torch.int64), DRAFT_STREAM, len(weights))
    drawn = draw_without_replacement(law.expand(rows, -1), count, noise)
    expected = {tokens: mass * rows for tokens, mass in orders(law, count)}
    assert sum(expected.values()) == pytest.approx(rows)
    seen = dict.fromkeys(expected, 0)
    for tokens in drawn.tolist():
        seen[tuple(tokens)] += 1
    assert stats.chisquare(list(seen.values()), list(expected.values())).pvalue > ALARM


def test_draw_without_replacement_takes_weight_zero_last():
    law = torch.tensor([[0.0, 0.6, 0.0, 0.4]]).expand(1000, -1)
    noise = uniforms(row_seeds(2, 1000, CPU), torch.zeros(1000, dtype=torch.int64), DRAFT_STREAM, 4)
    drawn = draw_without_replacement(law, 4, noise)
    assert set(map(frozenset, drawn[:, :2].tolist())) == {frozenset({1, 3})}
    assert set(map(frozenset, drawn[:, 2:].tolist())) == {frozenset({0, 2})}
