from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.cluster.source import Source

COUNTS = st.lists(st.integers(0, 40), min_size=1, max_size=30)
TICKS = st.sampled_from([0.05, 0.1, 1.0, 3.0])


def all_arrivals(counts: list[int], tick_s: float) -> np.ndarray:
    return np.array(
        [(k + (i + 0.5) / n) * tick_s for k, n in enumerate(counts) for i in range(n)], float
    )


def test_records_of_a_tick_arrive_evenly() -> None:
    source = Source(np.array([2, 0, 4]), tick_s=2.0)
    assert [source.arrival_s(r) for r in range(6)] == [0.5, 1.5, 4.25, 4.75, 5.25, 5.75]
    assert source.arrival_s(6) == float("inf")
    assert [source.arrived(t) for t in (0.0, 0.49, 0.5, 1.5, 4.0, 4.75, 99.0)] == [
        *(0, 0, 1, 2, 2, 4, 6)
    ]
    assert source.arrival_sum_s(3) == 0.5 + 1.5 + 4.25


@given(COUNTS, TICKS)
def test_arrived_and_sums_agree_with_the_list_of_all_arrivals(
    counts: list[int], tick_s: float
) -> None:
    source = Source(np.array(counts), tick_s)
    times = all_arrivals(counts, tick_s)
    assert source.records == len(times)
    for record, time_s in enumerate(times):
        assert source.arrival_s(record) == time_s
        assert source.arrived(time_s) == record + 1
        assert source.arrival_sum_s(record) == pytest.approx(times[:record].sum(), rel=1e-12)
    assert source.arrival_sum_s(len(times)) == pytest.approx(times.sum(), rel=1e-12)


@given(COUNTS, TICKS, st.floats(0.0, 1.2))
def test_an_ended_source_keeps_what_has_arrived(
    counts: list[int], tick_s: float, part: float
) -> None:
    source = Source(np.array(counts), tick_s)
    before = source.arrived(part * source.horizon_s)
    source.end_at(part * source.horizon_s)
    assert source.records == before == source.arrived(10.0 * source.horizon_s)
    assert source.arrival_s(before) == float("inf")
    assert source.arrival_sum_s(before) == pytest.approx(
        all_arrivals(counts, tick_s)[:before].sum(), rel=1e-12
    )


@pytest.mark.parametrize(
    ("counts", "tick_s", "message"),
    [
        (np.array([3, -1]), 1.0, "tick 1 has -1 records"),
        (np.array([1.5]), 1.0, "dtype float64; expected whole numbers"),
        (np.array([[1]]), 1.0, r"shape \(1, 1\)"),
        (np.array([1]), 0.0, "tick_s is 0.0"),
        (np.array([1]), float("nan"), "tick_s is nan"),
    ],
)
def test_impossible_streams_are_refused(counts: np.ndarray, tick_s: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Source(counts, tick_s)
