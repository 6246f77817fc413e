from __future__ import annotations

import math

import numpy as np
import pytest

from runtime.precision.snapshot import REPORT_COLUMNS, REPORT_INDEX
from simulators.energy import EnergyModel
from simulators.precision.metrics import arrival_times_s, latencies_s, summarise


def _report(**values: float) -> list[float]:
    assert set(values) <= set(REPORT_COLUMNS)
    return [values.get(name, 0.0) for name in REPORT_COLUMNS]


def _reports() -> np.ndarray:
    """Two batches: three requests, one of them late; one dropped in between; two more."""
    return np.array(
        [
            _report(
                requests=3, first_request=0, start_s=1.0, end_s=2.0, late=1, dropped=1,
                switched=0, correct=3, correct_in_time=2, escalated=1,
            ),
            _report(
                requests=2, first_request=4, start_s=2.0, end_s=4.0, switched=2,
                correct=1, correct_in_time=1,
            ),
            _report(),  # the stream was over
        ]
    )  # fmt: skip


def test_arrivals_are_spread_evenly() -> None:
    times = arrival_times_s(np.array([2, 0, 1, 4]), 0.5)
    assert times.tolist() == pytest.approx([0.125, 0.375, 1.25, 1.5625, 1.6875, 1.8125, 1.9375])
    assert arrival_times_s(np.zeros(3, dtype=np.int64), 0.5).tolist() == []


def test_figures_by_hand() -> None:
    arrivals_s = np.array([0.5, 0.75, 1.0, 1.25, 1.5, 2.0])
    reports = _reports()
    assert latencies_s(reports, arrivals_s).tolist() == [1.5, 1.25, 1.0, 2.5, 2.0]
    model = EnergyModel("hand", idle_w=10.0, active_w_per_slot=20.0)
    summary = summarise(reports, arrivals_s, model)
    assert summary.requests == 6
    assert summary.effective_accuracy == pytest.approx(3 / 6)
    assert summary.accuracy == pytest.approx(4 / 5)
    assert summary.missed_share == pytest.approx(2 / 6)
    assert summary.dropped_share == pytest.approx(1 / 6)
    assert summary.p50_s == 1.5
    assert summary.duration_s == 3.0
    assert summary.energy_per_request_j == pytest.approx((10.0 * 3.0 + 20.0 * 3.0) / 6)
    assert summary.switches_per_minute == pytest.approx(2 / 3.0 * 60.0)
    assert summary.escalated_share == pytest.approx(1 / 5)


def test_nothing_served_gives_no_numbers() -> None:
    summary = summarise(np.array([_report()]), np.zeros(0), EnergyModel("none", 1.0, 1.0))
    assert summary.requests == 0
    assert all(math.isnan(value) for value in summary[1:])


def test_tables_of_another_width_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected \[n, 16\]"):
        latencies_s(np.zeros((2, 5)), np.zeros(3))
    assert REPORT_INDEX["batch"] == 0
