from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from simulators.arrivals import ArrivalProcess, PoissonArrivals, worldcup_like
from simulators.rate_factors import FlashCrowds, GammaBursts, MarkovLevels, Sine, Steps
from simulators.replay import EventReplay, RateReplay

TRACE_RATES = np.random.default_rng(5).gamma(2.0, 20.0, size=4000)

PROCESSES: dict[str, ArrivalProcess] = {
    "poisson": PoissonArrivals(0.1, 40.0),
    "poisson-large": PoissonArrivals(1.0, 90.0),
    "gamma": PoissonArrivals(0.1, 40.0, (GammaBursts(1.0, 0.7),)),
    "sine": PoissonArrivals(0.1, 40.0, (Sine(0.7, 30.0),)),
    "steps": PoissonArrivals(0.1, 40.0, (Steps((1, 3), (3.0, 2.0)),)),
    "markov": PoissonArrivals(0.1, 40.0, (MarkovLevels((0.25, 1, 2.4), (60, 40, 25)),)),
    "flash": PoissonArrivals(0.1, 40.0, (FlashCrowds(1 / 30, 5.0, 10.0),)),
    "all": PoissonArrivals(
        0.1,
        40.0,
        (Sine(0.5, 60.0), GammaBursts(0.5, 1.0), MarkovLevels((1, 2), (9, 9)), GammaBursts(1, 1)),
    ),
    "worldcup-like": worldcup_like(0.1, 40.0),
    "rate-replay": RateReplay(0.1, TRACE_RATES, 0.5, np.ones(4000), (GammaBursts(1.0, 0.7),)),
    "event-replay": EventReplay(0.1, np.random.default_rng(6).poisson(3.0, 20_000), 1.7),
}


@pytest.mark.parametrize("name", PROCESSES)
@settings(max_examples=25, deadline=None)
@given(
    keys=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=5),
    start=st.integers(0, 15_000),
    pieces=st.lists(st.integers(0, 120), min_size=1, max_size=5),
)
def test_counts_depend_on_key_and_tick_only(
    name: str, keys: list[int], start: int, pieces: list[int]
) -> None:
    process = PROCESSES[name]
    n = len(keys)
    starts = start + 7 * np.arange(n)
    whole = process.counts(keys, starts, sum(pieces))
    assert whole.shape == (n, sum(pieces))
    assert whole.dtype == np.int64
    assert (whole >= 0).all()
    offset = 0
    for piece in pieces:
        part = process.counts(keys, starts + offset, piece)
        np.testing.assert_array_equal(part, whole[:, offset : offset + piece])
        offset += piece
    for i in reversed(range(n)):
        alone = process.counts(keys[i : i + 1], starts[i : i + 1], sum(pieces))
        np.testing.assert_array_equal(alone[0], whole[i])


@pytest.mark.parametrize("name", sorted(set(PROCESSES) - {"worldcup-like"}))
def test_mean_rate_is_what_arrives(name: str) -> None:
    process = PROCESSES[name]
    n_ticks = process.length_ticks or 20_000
    counts = process.counts(np.arange(60), np.zeros(60, dtype=np.int64), n_ticks)
    per_key = counts.mean(axis=1) / process.tick_s
    error = max(per_key.std() / np.sqrt(60), 1e-12)
    assert abs(per_key.mean() - process.mean_rate_per_s) < 4.5 * error


@pytest.mark.parametrize("name", PROCESSES)
def test_scaling_scales_the_mean_rate_and_the_records(name: str) -> None:
    process = PROCESSES[name]
    scaled = process.scaled(0.5)
    assert scaled.mean_rate_per_s == pytest.approx(0.5 * process.mean_rate_per_s)
    keys, start = np.arange(40), np.zeros(40, dtype=np.int64)
    full, half = process.counts(keys, start, 5000), scaled.counts(keys, start, 5000)
    # The same factors act on both, so the ratio has Poisson noise only.
    assert half.sum() / full.sum() == pytest.approx(0.5, rel=0.02)


def test_poisson_arrivals_have_dispersion_one_and_gamma_bursts_more() -> None:
    keys, start, n = np.arange(50), np.zeros(50, dtype=np.int64), 20_000
    plain = PoissonArrivals(0.1, 50.0).counts(keys, start, n)
    assert plain.var() / plain.mean() == pytest.approx(1.0, abs=0.01)
    burst = PoissonArrivals(0.1, 50.0, (GammaBursts(0.8, 0.1),)).counts(keys, start, n)
    # Negative binomial with mean m = 5: index of dispersion 1 + m * cv**2.
    assert burst.var() / burst.mean() == pytest.approx(1 + 5.0 * 0.8**2, rel=0.01)
    r = 1 / 0.8**2
    law = stats.nbinom(r, r / (r + 5.0))
    observed = np.bincount(burst.ravel(), minlength=40)[:40]
    expected = burst.size * law.pmf(np.arange(40))
    used = expected > 20
    chi2 = ((observed - expected)[used] ** 2 / expected[used]).sum()
    assert stats.chi2.sf(chi2, int(used.sum()) - 1) > 1e-4


def test_constant_poisson_keys_are_independent() -> None:
    counts = PROCESSES["poisson"].counts([0, 1, 2**63], [0, 0, 0], 20_000)
    correlation = np.corrcoef(counts) - np.eye(3)
    assert np.abs(correlation).max() < 0.03


def test_two_factors_of_one_kind_are_independent() -> None:
    bursts = GammaBursts(1.0, 1.0)
    process = PoissonArrivals(1.0, 1.0, (bursts, bursts))
    rates = process.rates(np.arange(100, dtype=np.uint64), np.zeros(100, dtype=np.int64), 2000)
    # Were they the same numbers, the mean of the square of an exponential would be 2.
    assert rates.mean() == pytest.approx(1.0, abs=0.03)


def test_wrong_arguments_are_refused() -> None:
    process = PROCESSES["poisson"]
    with pytest.raises(ValueError, match="expected \\[N\\] for both"):
        process.counts([1, 2], [0], 5)
    with pytest.raises(ValueError, match="expected both at least 0"):
        process.counts([1], [-1], 5)
    with pytest.raises(ValueError, match="expected both at least 0"):
        process.counts([1], [0], -5)
    with pytest.raises(ValueError, match="factor is 0"):
        process.scaled(0.0)
    with pytest.raises(ValueError, match="tick_s is 0"):
        PoissonArrivals(0.0, 1.0)
    with pytest.raises(ValueError, match="rate_per_s is -1"):
        PoissonArrivals(0.1, -1.0)
