"""From the reports of one run to its row in a long table, the same for simulated and real runs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from simulators.cluster.metrics import (
    energy_per_record_j,
    latency_parts,
    latency_summary,
    plan_changes,
    throughput_per_s,
)
from simulators.energy import EnergyModel

ENERGY_MODEL = EnergyModel("linear: 80 W idle + 10 W per busy slot", 80.0, 10.0)
"""Power in every table: a model, not a meter.

Linear in utilisation, as in Fan, Weber and Barroso, "Power provisioning for a warehouse-sized
computer" (ISCA 2007). A server of 8 slots then draws half of its peak power when idle, the share
that Barroso and Hölzle give in "The case for energy-proportional computing" (2007). The watts are
round numbers for a small server; only ratios between runs on as many slots mean anything.
"""


def summary_row(
    reports: NDArray[np.float64], *, cap_s: float, duration_s: float, energy: EnergyModel
) -> dict[str, float]:
    """Return the figures of one run.

    Args:
        reports: float64 [n, len(REPORT_COLUMNS)], all batches of the run, in any order.
        cap_s: Latency cap, finite seconds above 0, at which failed records are counted.
        duration_s: How long records arrived, seconds above 0; throughput and idle power refer to
            it.
        energy: Power model.

    Returns:
        Record-weighted latencies `mean_s`, `p50_s`, `p95_s`, `p99_s` and their parts
        `accumulation_s`, `queueing_s`, `processing_s` (seconds); `failed_share` and `late_share`
        (of the records); `batches`; `throughput_per_s` (records that left well in the duration);
        `plan_changes`; `energy_j_per_record`. Latencies are NaN without records.

    Raises:
        ValueError: Reports of another shape, no usable cap or duration.
    """
    latency = latency_summary(reports, cap_s)
    return {
        **latency._asdict(),
        **latency_parts(reports)._asdict(),
        "throughput_per_s": throughput_per_s(reports, 0.0, duration_s),
        "plan_changes": plan_changes(reports),
        "energy_j_per_record": energy_per_record_j(reports, duration_s, energy),
    }
