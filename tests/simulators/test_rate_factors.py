from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from simulators.arrivals import PoissonArrivals
from simulators.rate_factors import (
    FlashCrowds,
    GammaBursts,
    MarkovLevels,
    RateFactor,
    Sine,
    Steps,
)


def _rates(
    factor: RateFactor, n_keys: int, n_ticks: int, tick_s: float = 1.0, start: int = 0
) -> NDArray[np.float64]:
    process = PoissonArrivals(tick_s, 1.0, (factor,))
    keys = np.arange(100, 100 + n_keys, dtype=np.uint64)
    return process.rates(keys, np.full(n_keys, start, dtype=np.int64), n_ticks)


def test_gamma_bursts_hold_a_block_and_have_mean_one_and_the_stated_cv() -> None:
    rates = _rates(GammaBursts(cv=0.8, block_s=5.0), 400, 1000, start=3)
    assert np.all(rates[:, 0] == rates[:, 1])
    assert np.all(rates[:, 1] != rates[:, 2])
    blocks = rates[:, 2::5]
    assert blocks.mean() == pytest.approx(1.0, abs=5 * 0.8 / math.sqrt(blocks.size))
    assert blocks.std() / blocks.mean() == pytest.approx(0.8, rel=0.02)
    assert abs(np.corrcoef(blocks[:, :-1].ravel(), blocks[:, 1:].ravel())[0, 1]) < 0.02


def test_sine_with_a_fixed_phase_is_the_formula() -> None:
    rates = _rates(Sine(amplitude=0.7, period_s=40.0, phase=0.5), 2, 100, tick_s=0.5, start=7)
    t = (np.arange(100) + 7 + 0.5) * 0.5
    expected = 1 + 0.7 * np.sin(2 * np.pi * t / 40.0 + 0.5)
    np.testing.assert_allclose(rates, np.stack([expected, expected]), rtol=1e-12)


def test_sine_draws_one_phase_per_key() -> None:
    rates = _rates(Sine(amplitude=1.0, period_s=50.0), 1000, 50)
    np.testing.assert_allclose(rates.mean(axis=1), 1.0, rtol=1e-12)
    # Uniform phases: the mean over keys is flat, the variance amplitude**2 / 2 at every instant.
    np.testing.assert_allclose(rates.var(axis=0), 0.5, atol=0.06)


def test_steps_cycle_through_levels_normalised_by_time() -> None:
    rates = _rates(Steps(levels=(1, 4), durations_s=(2.0, 1.0)), 1, 7, start=1)
    np.testing.assert_allclose(rates[0], [0.5, 2.0, 0.5, 0.5, 2.0, 0.5, 0.5])


def test_markov_levels_have_the_stated_shares_and_holding_times() -> None:
    chain = MarkovLevels(levels=(0.25, 1.0, 2.4), holding_s=(60.0, 40.0, 25.0))
    rates = _rates(chain, 400, 20_000)
    levels = np.array([0.25, 1.0, 2.4]) * 125.0 / (15.0 + 40.0 + 60.0)
    np.testing.assert_allclose(np.unique(rates), levels, rtol=1e-12)
    for level, holding_s in zip(levels, (60.0, 40.0, 25.0), strict=True):
        inside = np.isclose(rates, level)
        assert inside.mean() == pytest.approx(holding_s / 125.0, rel=0.02)
        entries = (inside[:, 1:] & ~inside[:, :-1]).sum()
        assert inside[:, 1:].sum() / entries == pytest.approx(holding_s, rel=0.02)
    assert rates.mean() == pytest.approx(1.0, rel=0.01)
    # Stationary from the first tick on.
    assert rates[:, 0].mean() == pytest.approx(1.0, abs=0.15)


def test_markov_levels_change_at_steps_only() -> None:
    chain = MarkovLevels(levels=(1.0, 3.0), holding_s=(20.0, 20.0), step_s=10.0)
    rates = _rates(chain, 50, 500)
    changed = np.flatnonzero((np.diff(rates, axis=1) != 0).any(axis=0)) + 1
    assert len(changed) > 10
    assert np.all(changed % 10 == 0)


def test_flash_crowds_have_mean_one_and_the_variance_of_shot_noise() -> None:
    onset, peak, decay_s = 1 / 200, 5.0, 30.0
    rates = _rates(FlashCrowds(onset, peak, decay_s), 400, 20_000)
    # Campbell's theorem for exponential pulses of height h = peak - 1.
    mean = 1 + onset * 4.0 * decay_s
    variance = onset * 4.0**2 * decay_s / 2
    assert rates.mean() == pytest.approx(1.0, rel=0.02)
    assert rates.std() == pytest.approx(math.sqrt(variance) / mean, rel=0.04)


def test_a_lone_flash_crowd_jumps_to_its_peak_and_fades() -> None:
    rates = _rates(FlashCrowds(1 / 50_000, 5.0, 20.0), 40, 5_000)
    quiet = rates.min()
    row, tick = np.unravel_index(np.argmax(rates[:, 600:4000]), (40, 3400))
    shape = rates[row, tick + 600 - 1 : tick + 600 + 60] / quiet
    assert shape[0] == pytest.approx(1.0, abs=1e-6)
    np.testing.assert_allclose(shape[1:], 1 + 4 * np.exp(-np.arange(60) / 20.0), rtol=1e-6)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: GammaBursts(cv=0.0, block_s=1.0), "cv is 0.0"),
        (lambda: Sine(amplitude=1.2, period_s=10.0), "amplitude is 1.2"),
        (lambda: Sine(amplitude=0.5, period_s=math.nan), "period_s is nan"),
        (lambda: Steps(levels=(1.0,), durations_s=(1.0, 2.0)), "1 levels and 2 durations_s"),
        (lambda: Steps(levels=(0.0, 0.0), durations_s=(1.0, 2.0)), "all levels are 0"),
        (lambda: MarkovLevels((1.0, -2.0), (9.0, 9.0)), "levels is -2.0"),
        (lambda: MarkovLevels((1.0, 2.0), (1.5, 9.0)), "make step_s smaller"),
        (lambda: FlashCrowds(1 / 60, 0.5, 30.0), "peak_factor is 0.5"),
        (lambda: FlashCrowds(2.0, 2.0, 30.0), "onsets_per_s is 2.0"),
    ],
)
def test_impossible_factors_are_refused(build: object, message: str) -> None:
    assert callable(build)
    with pytest.raises(ValueError, match=message):
        build()


def test_a_block_that_is_no_multiple_of_the_tick_is_refused() -> None:
    with pytest.raises(ValueError, match=r"block_s is 0\.25 s; expected a positive multiple"):
        _rates(GammaBursts(cv=1.0, block_s=0.25), 1, 1, tick_s=0.1)
