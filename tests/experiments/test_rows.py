from __future__ import annotations

import numpy as np
import pytest

from experiments.rows import ENERGY_MODEL, summary_row
from runtime.snapshot import REPORT_COLUMNS, Report


def report(batch: int, version: int, records: int, arrived_s: float, failed: int) -> Report:
    """Make a batch whose records arrived at once: cut 1 s later, started 2 s on, ended 3 s on."""
    return Report(
        batch=batch,
        plan_version=version,
        records=records,
        first_record=0,
        first_arrival_s=arrived_s,
        mean_arrival_s=arrived_s,
        last_arrival_s=arrived_s,
        cut_s=arrived_s + 1.0,
        start_s=arrived_s + 3.0,
        end_s=arrived_s + 6.0,
        tasks=4,
        busy_independent_s=5.0,
        busy_dependent_s=3.0,
        failed_jobs=failed,
    )


def test_a_row_by_hand() -> None:
    rows = [report(0, 0, 30, 0.0, 0), report(1, 1, 10, 1.0, 2), report(2, 1, 60, 10.0, 0)]
    reports = np.stack([r.to_row() for r in rows])
    row = summary_row(reports, cap_s=20.0, duration_s=10.0, energy=ENERGY_MODEL)
    assert row["mean_s"] == pytest.approx((90 * 6.0 + 10 * 20.0) / 100)
    assert (row["accumulation_s"], row["queueing_s"], row["processing_s"]) == (1.0, 2.0, 3.0)
    assert (row["p50_s"], row["p95_s"]) == (6.0, 20.0)
    assert row["failed_share"] == row["late_share"] == pytest.approx(0.1)
    assert row["throughput_per_s"] == 3.0, "the last batch ends after the duration"
    assert (row["batches"], row["plan_changes"]) == (3, 1)
    # 10 s at 80 W, 24 busy slot-seconds at 10 W, over the 90 records that left well.
    assert row["energy_j_per_record"] == pytest.approx((800.0 + 240.0) / 90)


def test_no_records_have_no_latency() -> None:
    row = summary_row(
        np.zeros((0, len(REPORT_COLUMNS))), cap_s=20.0, duration_s=10.0, energy=ENERGY_MODEL
    )
    assert np.isnan(row["mean_s"])
    assert row["throughput_per_s"] == 0.0


def test_a_server_of_eight_slots_idles_at_half_of_its_peak() -> None:
    assert ENERGY_MODEL.energy_j(1.0, 0.0) == 0.5 * ENERGY_MODEL.energy_j(1.0, 8.0)
