from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from simulators.arrivals import worldcup_like
from simulators.rate_factors import GammaBursts
from simulators.replay import (
    EventReplay,
    TrailingLoad,
    replay_at_load,
    replay_events,
    replay_rates,
)
from simulators.traces import (
    EventTrace,
    RateTrace,
    TraceError,
    read_azure_llm_2023,
    read_worldcup98,
)

COUNTS = np.array([40, 80, 0, 120, 60, 60, 30], dtype=np.int64)


def _trace(counts: NDArray[np.int64] = COUNTS, lead_in: int = 0) -> RateTrace:
    return RateTrace("t", np.datetime64("2020-01-01T00:00:00"), 60.0, counts, lead_in)


def test_rates_are_counts_per_interval_with_a_plain_factor() -> None:
    replay = replay_rates(_trace(), tick_s=0.5, interval_s=3.0, factor=2.0)
    np.testing.assert_allclose(replay.rates_per_s, COUNTS * 2.0 / 3.0)
    assert replay.length_ticks == 7 * 6
    assert replay.trace_factors.tolist() == [2.0] * 7
    counts = replay.counts(np.arange(20_000), np.zeros(20_000, dtype=np.int64), 42)
    per_interval = counts.reshape(-1, 7, 6).sum(axis=2)
    assert np.all(per_interval[:, 2] == 0)
    error = np.sqrt(2.0 * COUNTS / 20_000)
    assert np.all(np.abs(per_interval.mean(axis=0) - 2.0 * COUNTS) <= 4.5 * error)
    # Own length of an interval when none is given.
    assert replay_rates(_trace(), tick_s=0.5).length_ticks == 7 * 120


def test_a_load_refers_to_the_mean_of_the_past_only() -> None:
    target = TrailingLoad(load=0.5, capacity_per_s=100.0, window=2)
    replay = replay_at_load(_trace(), 0.5, 3.0, target)
    past = np.array([60.0, 40.0, 60.0, 90.0, 60.0])
    np.testing.assert_allclose(replay.rates_per_s, 50.0 * COUNTS[2:] / past)
    np.testing.assert_allclose(replay.trace_factors, 50.0 * 3.0 / past)
    np.testing.assert_allclose(replay.trace_factors * COUNTS[2:] / 3.0, replay.rates_per_s)
    # Changing an interval changes no rate before it.
    changed = COUNTS.copy()
    changed[5] = 6000
    later = replay_at_load(_trace(changed), 0.5, 3.0, target)
    np.testing.assert_array_equal(later.rates_per_s[:3], replay.rates_per_s[:3])
    # A lead-in gives the past and is not replayed.
    led = replay_at_load(_trace(lead_in=4), 0.5, 3.0, target)
    np.testing.assert_array_equal(led.rates_per_s, replay.rates_per_s[2:])
    assert replay_rates(_trace(lead_in=4), 0.5).rates_per_s.shape == (3,)


def test_a_constant_trace_gives_exactly_the_load() -> None:
    target = TrailingLoad(load=0.8, capacity_per_s=250.0, window=5)
    replay = replay_at_load(_trace(np.full(50, 7, dtype=np.int64)), 1.0, 3.0, target)
    np.testing.assert_allclose(replay.rates_per_s, 200.0)
    assert replay.mean_rate_per_s == pytest.approx(200.0)


def test_loads_without_a_past_are_refused() -> None:
    with pytest.raises(TraceError, match="needs more than 7"):
        replay_at_load(_trace(), 1.0, 3.0, TrailingLoad(0.5, 1.0, 7))
    empty = _trace(np.array([5, 0, 0, 5], dtype=np.int64))
    with pytest.raises(TraceError, match="2 intervals before interval 3; choose a longer"):
        replay_at_load(empty, 1.0, 3.0, TrailingLoad(0.5, 1.0, 2))
    with pytest.raises(ValueError, match="window is 0"):
        TrailingLoad(0.5, 1.0, 0)
    with pytest.raises(ValueError, match=r"interval_s is 0\.25 s"):
        replay_rates(_trace(), 0.1, 0.25)


def test_a_replay_never_wraps() -> None:
    replay = replay_rates(_trace(), tick_s=1.0, interval_s=3.0)
    assert replay.counts([1], [11], 10).shape == (1, 10)
    with pytest.raises(TraceError, match=r"ticks 12 to 22 were asked for, but .* has 21"):
        replay.counts([1, 2], [0, 12], 10)


def test_bursts_inside_intervals_keep_the_mean_and_add_variance() -> None:
    counts = np.full(200, 300, dtype=np.int64)
    bursty = replay_rates(_trace(counts), 1.0, 3.0, factors=(GammaBursts(0.5, 3.0),))
    drawn = bursty.counts(np.arange(50), np.zeros(50, dtype=np.int64), 600)
    per_interval = drawn.reshape(50, 200, 3).sum(axis=2)
    assert per_interval.mean() == pytest.approx(300.0, rel=0.02)
    assert per_interval.var() == pytest.approx(300.0 + (0.5 * 300.0) ** 2, rel=0.08)


def test_events_are_binned_exactly_and_ignore_the_key() -> None:
    start = np.datetime64("2020-01-01T00:00:00", "ns")
    trace = EventTrace("e", start, np.array([0.0, 0.99, 1.0, 1.0, 3.5]))
    replay = replay_events(trace, tick_s=1.0)
    np.testing.assert_array_equal(replay.counts([3, 9], [0, 0], 4), [[2, 2, 0, 1]] * 2)
    assert replay.mean_rate_per_s == pytest.approx(5 / 4)
    slower = replay_events(trace, tick_s=1.0, time_scale=2.0)
    assert slower.counts([1], [0], 8).tolist() == [[1, 1, 2, 0, 0, 0, 0, 1]]
    with pytest.raises(TraceError, match="has 4"):
        replay.counts([1], [1], 4)


def test_scaled_events_are_thinned_and_repeated_monotonically() -> None:
    events = EventReplay(1.0, np.full(5000, 10, dtype=np.int64))
    keys, start = np.arange(10), np.zeros(10, dtype=np.int64)
    previous = np.zeros((10, 5000), dtype=np.int64)
    for factor in (0.3, 0.7, 1.0, 2.0, 2.4):
        counts = events.scaled(factor).counts(keys, start, 5000)
        assert (counts >= previous).all()
        rest = factor % 1.0
        assert counts.mean() == pytest.approx(10 * factor, abs=0.08)
        # Binomial thinning of 10 arrivals.
        assert counts.var() == pytest.approx(10 * rest * (1 - rest), abs=0.08)
        previous = counts


def _shape(counts: NDArray[np.int64]) -> tuple[float, float, float, float]:
    x = counts - counts.mean()
    correlation = [float((x[:-lag] * x[lag:]).mean() / x.var()) for lag in (1, 60)]
    mean = counts.mean()
    return float(counts.std() / mean), float(counts.max() / mean), correlation[0], correlation[1]


def test_worldcup_like_is_about_as_bursty_as_the_trace(data_root: Path) -> None:
    trace = read_worldcup98(data_root)
    cv, peak, lag_1, lag_60 = _shape(trace.counts)
    assert (cv, peak) == pytest.approx((1.738, 19.70), abs=0.01)
    assert (lag_1, lag_60) == pytest.approx((0.9987, 0.9125), abs=1e-3)
    process = worldcup_like(3.0, float(trace.counts.mean()) / 3.0)
    drawn = process.counts(np.arange(20), np.zeros(20, dtype=np.int64), len(trace.counts))
    own = np.median([_shape(row) for row in drawn], axis=0)
    # Measured: 1.74, 22.1, 0.997, 0.911.
    assert own[0] == pytest.approx(cv, rel=0.15)
    assert own[1] == pytest.approx(peak, rel=0.35)
    assert own[2] == pytest.approx(lag_1, abs=0.005)
    assert own[3] == pytest.approx(lag_60, abs=0.05)


def test_real_traces_replay_at_a_stated_load(data_root: Path) -> None:
    train, held_out = read_worldcup98(data_root).split(0.7, lead_in=1440)
    target = TrailingLoad(load=0.7, capacity_per_s=1000.0, window=1440)
    for part in (train, held_out):
        replay = replay_at_load(part, 0.5, 3.0, target)
        counts = replay.counts([1], [0], replay.length_ticks)
        records = counts.sum()
        assert records / (replay.length_ticks * 0.5) == pytest.approx(
            replay.mean_rate_per_s, abs=4.5 * replay.mean_rate_per_s / records**0.5
        )
        assert replay.mean_rate_per_s == pytest.approx(700.0, rel=0.1)
    assert len(held_out.counts) - 1440 + len(train.counts) == 73_590
    azure = read_azure_llm_2023(data_root)
    events = replay_events(azure, 0.1)
    assert events.counts([0], [0], events.length_ticks).sum() == 19_366
