from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from runtime.snapshot import REPORT_COLUMNS, Report
from simulators.cluster.metrics import (
    arrived_after,
    backlog_growth,
    busy_slot_s,
    energy_per_record_j,
    failed_share,
    is_stable,
    late_share,
    latency_parts,
    latency_quantiles_s,
    latency_summary,
    mean_latency_s,
    plan_changes,
    throughput_per_s,
)
from simulators.energy import EnergyModel


def _report(
    arrivals: tuple[float, float],
    times: tuple[float, float, float],
    records: int,
    **other: float,
) -> NDArray[np.float64]:
    """Row of a batch: first and last arrival; cut, start, end."""
    values = dict.fromkeys(REPORT_COLUMNS, 0.0) | {
        "records": records,
        "first_arrival_s": arrivals[0],
        "mean_arrival_s": sum(arrivals) / 2,
        "last_arrival_s": arrivals[1],
        "cut_s": times[0],
        "start_s": times[1],
        "end_s": times[2],
    }
    return np.array([(values | other)[name] for name in REPORT_COLUMNS])


NONE = np.empty((0, len(REPORT_COLUMNS)))
# Latencies uniform on [2, 4] for 30 records, and on [3, 8] for 10.
TWO = np.stack(
    [
        _report((0.0, 2.0), (2.0, 2.5, 4.0), 30, batch=0, plan_version=1),
        _report((2.0, 7.0), (7.0, 9.0, 10.0), 10, batch=1, plan_version=2),
    ]
)


def test_means_are_weighted_by_records_and_parts_add_up() -> None:
    assert mean_latency_s(TWO) == pytest.approx((30 * 3.0 + 10 * 5.5) / 40)
    parts = latency_parts(TWO)
    assert parts == pytest.approx(
        (
            (30 * 1.0 + 10 * 2.5) / 40,
            (30 * 0.5 + 10 * 2.0) / 40,
            (30 * 1.5 + 10 * 1.0) / 40,
        )
    )
    assert sum(parts) == pytest.approx(mean_latency_s(TWO))
    report = Report.from_row(TWO[1])
    assert mean_latency_s(TWO[1:]) == pytest.approx(report.latency_s)


def test_quantiles_of_one_uniform_batch() -> None:
    np.testing.assert_allclose(latency_quantiles_s(TWO[:1], [0, 0.25, 0.5, 1]), [2, 2.5, 3, 4])


def test_quantiles_of_a_mixture_by_hand() -> None:
    # F rises by 3/8 a second on [2, 3], 3/8 + 1/20 on [3, 4], 1/20 on [4, 8].
    assert latency_quantiles_s(TWO, [0.375])[0] == pytest.approx(3.0)
    assert latency_quantiles_s(TWO, [0.5])[0] == pytest.approx(3 + 0.125 / 0.425)
    assert latency_quantiles_s(TWO, [0.8])[0] == pytest.approx(4.0)
    assert latency_quantiles_s(TWO, [0.95])[0] == pytest.approx(7.0)


def test_batches_that_arrived_at_once_are_jumps() -> None:
    rows = np.stack(
        [
            _report((0.0, 0.0), (0.0, 0.0, 1.0), 50),
            _report((0.0, 0.0), (0.0, 0.0, 3.0), 50),
        ]
    )
    levels = [0.0, 0.49, 0.5, 0.51, 1.0]
    assert latency_quantiles_s(rows, levels).tolist() == [1.0, 1.0, 1.0, 3.0, 3.0]
    assert late_share(rows, 1.0) == 0.5
    assert late_share(rows, 3.0) == 0.0


batches = st.lists(
    st.tuples(
        st.floats(0.0, 50.0),  # lowest latency
        st.one_of(st.just(0.0), st.floats(1e-3, 50.0)),  # width
        st.integers(1, 1000),  # records
        st.booleans(),  # failed
    ),
    min_size=1,
    max_size=12,
)


def _rows(specification: list[tuple[float, float, int, bool]]) -> NDArray[np.float64]:
    return np.stack(
        [
            _report((100.0 - width, 100.0), (100.0, 100.0, 100.0 + low), n, failed_jobs=failed)
            for low, width, n, failed in specification
        ]
    )


@settings(deadline=None)
@given(batches, st.floats(0.001, 0.999))
def test_quantiles_invert_the_distribution(
    specification: list[tuple[float, float, int, bool]], q: float
) -> None:
    rows = _rows(specification)
    cap_s = 60.0
    x = float(latency_quantiles_s(rows, [q], cap_s)[0])

    def share_upto(latency: float) -> float:
        total = sum(n for _, _, n, _ in specification)
        below = 0.0
        for low, width, n, failed in specification:
            a, b = (cap_s, cap_s) if failed else (low, low + width)
            inside = (latency - a) / (b - a) if b - a > 1e-6 else float(latency >= a - 1e-9)
            below += n * min(max(inside, 0.0), 1.0)
        return below / total

    assert share_upto(x + 1e-6) >= q - 1e-6
    assert share_upto(x - 1e-6) <= q + 1e-4  # the smallest such latency


@given(batches)
def test_quantiles_rise_and_the_mean_lies_between(
    specification: list[tuple[float, float, int, bool]],
) -> None:
    rows = _rows(specification)
    quantiles = latency_quantiles_s(rows, np.linspace(0, 1, 201), 60.0)
    assert np.all(np.diff(quantiles) >= -1e-9)
    mean = mean_latency_s(rows, 60.0)
    assert quantiles[0] - 1e-9 <= mean <= quantiles[-1] + 1e-9
    # The mean is the area beside the quantile function.
    assert quantiles[:-1].mean() - 1e-6 <= mean <= quantiles[1:].mean() + 1e-6
    np.testing.assert_allclose(latency_quantiles_s(rows[::-1], [0.3, 0.9], 60.0),
                               latency_quantiles_s(rows, [0.3, 0.9], 60.0), atol=1e-9)  # fmt: skip


def test_failed_records_count_at_the_cap_and_separately() -> None:
    rows = np.vstack([TWO, _report((0.0, 1.0), (1.0, 1.0, 1.5), 60, failed_jobs=2)])
    assert failed_share(rows) == pytest.approx(0.6)
    assert mean_latency_s(rows) == pytest.approx(mean_latency_s(TWO))
    assert mean_latency_s(rows, cap_s=20.0) == pytest.approx((145.0 + 60 * 20.0) / 100)
    assert latency_quantiles_s(rows, [0.5], cap_s=20.0)[0] == 20.0
    assert latency_quantiles_s(rows, [0.5])[0] == latency_quantiles_s(TWO, [0.5])[0]
    # 6 s is exceeded by 2/5 of the second batch.
    assert late_share(rows, 6.0) == pytest.approx((10 * 0.4 + 60) / 100)
    summary = latency_summary(rows, cap_s=20.0)
    assert summary.failed_share == pytest.approx(0.6)
    assert summary.late_share == pytest.approx(0.6)
    assert (summary.p50_s, summary.batches) == (20.0, 3)
    assert latency_parts(rows) == latency_parts(TWO)


def test_no_records_give_nan_and_only_failures_the_cap() -> None:
    assert math.isnan(mean_latency_s(NONE))
    assert math.isnan(failed_share(NONE))
    assert np.isnan(latency_quantiles_s(NONE, [0.5])).all()
    failed = _report((0.0, 1.0), (1.0, 1.0, 1.5), 5, failed_jobs=1)[None]
    assert math.isnan(mean_latency_s(failed))
    assert mean_latency_s(failed, cap_s=9.0) == 9.0
    assert latency_quantiles_s(failed, [0.1, 0.9], 9.0).tolist() == [9.0, 9.0]


def test_narrow_batches_do_not_drown_the_others() -> None:
    rng = np.random.default_rng(0)
    rows = [_report((10.0 - w, 10.0), (10.0, 10.0, 20.0), 1) for w in rng.uniform(0, 2e-6, 500)]
    rows.append(_report((0.0, 10.0), (10.0, 10.0, 20.0), 500))
    values = latency_quantiles_s(np.stack(rows), [0.75])
    assert values[0] == pytest.approx(15.0, abs=1e-5)


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(2, 3\); expected \[n, 14\]"):
        mean_latency_s(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="quantile levels"):
        latency_quantiles_s(TWO, [95.0])
    with pytest.raises(ValueError, match="cap_s is inf"):
        latency_summary(TWO, math.inf)
    with pytest.raises(ValueError, match="expected an end after its start"):
        throughput_per_s(TWO, 5.0, 5.0)
    with pytest.raises(ValueError, match="n >= 3"):
        backlog_growth([0, 1], [0, 1], [0, 1])
    with pytest.raises(ValueError, match="no record arrived"):
        backlog_growth([0, 1, 2], [5, 5, 5], [0, 1, 2])
    with pytest.raises(ValueError, match="idle_w is -1"):
        EnergyModel("m", -1.0, 2.0)


def test_warm_up_throughput_and_plan_changes() -> None:
    assert arrived_after(TWO, 2.0).tolist() == TWO[1:].tolist()
    assert len(arrived_after(TWO, 0.0)) == 2
    assert throughput_per_s(TWO, 4.0, 10.0) == pytest.approx(30 / 6.0)
    assert throughput_per_s(TWO, 4.0, 10.1) == pytest.approx(40 / 6.1)
    versions = [1, 1, 2, 3, 3, 1]
    rows = np.stack(
        [_report((0, 1), (1, 1, 2), 1, batch=b, plan_version=v) for b, v in enumerate(versions)]
    )
    assert plan_changes(rows) == 3
    assert plan_changes(rows[[3, 1, 5, 0, 4, 2]]) == 3
    assert plan_changes(NONE) == 0


def test_energy_is_idle_time_plus_busy_slots() -> None:
    model = EnergyModel("hand", idle_w=50.0, active_w_per_slot=10.0)
    rows = TWO.copy()
    rows[:, REPORT_COLUMNS.index("busy_independent_s")] = [3.0, 1.0]
    rows[:, REPORT_COLUMNS.index("busy_dependent_s")] = [0.5, 1.5]
    assert busy_slot_s(rows) == (4.0, 2.0)
    assert model.energy_j(10.0, 6.0) == 560.0
    assert energy_per_record_j(rows, 10.0, model) == pytest.approx(560.0 / 40)
    rows[1, REPORT_COLUMNS.index("failed_jobs")] = 1
    assert energy_per_record_j(rows, 10.0, model) == pytest.approx(560.0 / 30)


def test_a_sawtooth_of_cuts_is_stable() -> None:
    t = np.arange(0.0, 600.0, 0.5)
    left = 100 * np.floor(t / 3.0) * 3.0  # all that waits leaves every 3 s
    assert abs(backlog_growth(t, 100 * t, left)) < 1e-3
    assert is_stable(t, 100 * t, left)


@pytest.mark.parametrize(("load", "stable"), [(0.5, True), (0.9, True), (1.1, False)])
def test_a_queue_with_random_arrivals_is_stable_below_capacity(load: float, stable: bool) -> None:
    arrived = np.cumsum(np.random.default_rng(2).poisson(100 * load, size=2000))
    left, total = np.empty(2000), 0.0
    for k, n in enumerate(arrived):
        total = min(total + 100.0, float(n))
        left[k] = total
    assert is_stable(np.arange(2000), arrived, left) is stable


@pytest.mark.parametrize("load", [1.05, 1.5, 4.0])
def test_a_queue_above_capacity_grows_by_the_excess(load: float) -> None:
    t = np.arange(0.0, 600.0, 0.5)
    noise = np.random.default_rng(1).normal(scale=30.0, size=len(t))
    assert backlog_growth(t, 100 * load * t, 100 * t + noise) == pytest.approx(
        1 - 1 / load, abs=0.005
    )
    assert not is_stable(t, 100 * load * t, 100 * t)
