"""Figures of a run: pure functions of its reports and backlog.

Reports come as float64 [n, len(REPORT_COLUMNS)], one row a batch, in any order. Every latency is
record-weighted. Inside a batch arrivals are taken as uniform between the first and the last one,
so the latencies of its records are uniform between end - last arrival and end - first arrival;
means use the reported mean arrival and are exact.

Failed records (in batches with a failed or cancelled job) have no latency of their own: they are
counted at the latency cap, and shown separately as the failed share.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from runtime.snapshot import REPORT_COLUMNS, REPORT_INDEX
from simulators.energy import EnergyModel

Reports = NDArray[np.float64]

# Batches whose records arrived closer together count as one instant: the densities of narrower
# ones would drown the others in rounding errors.
_SMALLEST_SPREAD_S = 1e-6


class LatencyParts(NamedTuple):
    """Record-weighted means, seconds; they add up to the mean latency of the same records."""

    accumulation_s: float
    queueing_s: float
    processing_s: float


class LatencySummary(NamedTuple):
    """Record-weighted latency, failed records at the cap; NaN if there are no records.

    Attributes:
        mean_s: Mean.
        p50_s: Median.
        p95_s: 95th percentile.
        p99_s: 99th percentile.
        failed_share: Share of the records that failed.
        late_share: Share of the records that failed or took longer than the cap.
        batches: Number of batches behind it; a 95th percentile needs at least 200.
    """

    mean_s: float
    p50_s: float
    p95_s: float
    p99_s: float
    failed_share: float
    late_share: float
    batches: int


def arrived_after(reports: Reports, start_s: float) -> Reports:
    """Return the batches whose first record arrived at or after a time: cuts off the warm-up."""
    return reports[_column(reports, "first_arrival_s") >= start_s]


def mean_latency_s(reports: Reports, cap_s: float = math.inf) -> float:
    """Return the mean latency over records, failed ones at the cap.

    Args:
        reports: float64 [n, len(REPORT_COLUMNS)].
        cap_s: Latency cap. Without one failed records are left out.
    """
    succeeded, failed_records = _split(reports)
    records = _column(succeeded, "records")
    latency = _column(succeeded, "end_s") - _column(succeeded, "mean_arrival_s")
    counted = failed_records if math.isfinite(cap_s) else 0.0
    capped = counted * cap_s if counted else 0.0
    return _ratio(float(records @ latency) + capped, float(records.sum()) + counted)


def latency_parts(reports: Reports) -> LatencyParts:
    """Return the mean latency in its parts, over the records that did not fail."""
    succeeded, _ = _split(reports)
    records = _column(succeeded, "records")
    times = [_column(succeeded, name) for name in ("mean_arrival_s", "cut_s", "start_s", "end_s")]
    total = float(records.sum())
    parts = (_ratio(float(records @ (b - a)), total) for a, b in pairwise(times))
    return LatencyParts(*parts)


def latency_quantiles_s(
    reports: Reports, levels: ArrayLike, cap_s: float = math.inf
) -> NDArray[np.float64]:
    """Return quantiles of the latency over records, failed ones at the cap.

    The law is a mixture of uniform ones, one per batch, weighted by records; its distribution
    function is piecewise linear (with jumps where all records of a batch arrived at once) and is
    inverted exactly. The quantile at q is the smallest latency that at least a share q of the
    records does not exceed.

    Args:
        reports: float64 [n, len(REPORT_COLUMNS)].
        levels: Numbers in [0, 1], shape [m].
        cap_s: Latency cap. Without one failed records are left out.

    Returns:
        float64 [m]; NaN if there are no records.

    Raises:
        ValueError: A level outside [0, 1].
    """
    q = np.asarray(levels, dtype=np.float64)
    if not np.all((q >= 0.0) & (q <= 1.0)):
        raise ValueError(f"quantile levels are {q.tolist()}; expected numbers in [0, 1]")
    low, high, weight = _mixture(reports, cap_s)
    if not len(weight):
        return np.full(q.shape, np.nan)
    at, below, upto = _distribution(low, high, weight)
    # First breakpoint whose distribution function reaches q; rounding must not push 1 beyond.
    k = np.minimum(np.searchsorted(upto, q * (1.0 - 1e-12), side="left"), len(at) - 1)
    before = np.maximum(k - 1, 0)
    rise = below[k] - upto[before]
    inside = (k > 0) & (q < below[k]) & (rise > 0.0)
    fraction = np.where(inside, (q - upto[before]) / np.where(rise > 0.0, rise, 1.0), 1.0)
    result: NDArray[np.float64] = at[before] + np.clip(fraction, 0.0, 1.0) * (at[k] - at[before])
    return result


def late_share(reports: Reports, cap_s: float) -> float:
    """Return the share of records that failed or took longer than a cap."""
    _, failed_records = _split(reports)
    low, high, weight = _mixture(reports, math.inf)
    width = np.where(high > low, high - low, 1.0)
    over = np.where(high > low, np.clip((high - cap_s) / width, 0.0, 1.0), low > cap_s)
    return _ratio(float(weight @ over) + failed_records, float(weight.sum()) + failed_records)


def failed_share(reports: Reports) -> float:
    """Return the share of records in batches with a failed or cancelled job."""
    _, failed_records = _split(reports)
    return _ratio(failed_records, float(_column(reports, "records").sum()))


def latency_summary(reports: Reports, cap_s: float) -> LatencySummary:
    """Return mean, percentiles and shares at a latency cap (finite seconds above 0).

    Raises:
        ValueError: No usable cap.
    """
    if not (math.isfinite(cap_s) and cap_s > 0.0):
        raise ValueError(f"cap_s is {cap_s}; expected finite seconds above 0")
    p50, p95, p99 = latency_quantiles_s(reports, (0.5, 0.95, 0.99), cap_s).tolist()
    return LatencySummary(
        mean_s=mean_latency_s(reports, cap_s),
        p50_s=p50,
        p95_s=p95,
        p99_s=p99,
        failed_share=failed_share(reports),
        late_share=late_share(reports, cap_s),
        batches=len(reports),
    )


def throughput_per_s(reports: Reports, start_s: float, end_s: float) -> float:
    """Return the records per second that left in batches which ended well in [start, end).

    A rate that was processed, not the highest that could be: that is found by bisection.

    Raises:
        ValueError: The stretch of time is empty.
    """
    if not end_s > start_s:
        raise ValueError(f"the stretch is {start_s} to {end_s} s; expected an end after its start")
    succeeded, _ = _split(reports)
    ended = _column(succeeded, "end_s")
    inside = (ended >= start_s) & (ended < end_s)
    return float(_column(succeeded, "records")[inside].sum()) / (end_s - start_s)


def backlog_growth(time_s: ArrayLike, records_in: ArrayLike, records_left: ArrayLike) -> float:
    """Return how fast the backlog grows, as a share of the arrival rate.

    The slope of a least-squares line through records in the system against time, divided by the
    mean arrival rate: about 0 where the system keeps up, 1 - capacity/rate where it does not.

    Args:
        time_s: float64 [n], ascending, n >= 3 (say, one per decision, the warm-up left out).
        records_in: [n], records that arrived since the start.
        records_left: [n], records that left since the start, well or failed.

    Raises:
        ValueError: Fewer than 3 times, different lengths, or no arrivals between first and last.
    """
    t, arrived, left = (np.asarray(x, dtype=np.float64) for x in (time_s, records_in, records_left))
    if t.ndim != 1 or len(t) < 3 or not t.shape == arrived.shape == left.shape:
        raise ValueError(
            f"shapes are {t.shape}, {arrived.shape}, {left.shape}; expected [n] each with n >= 3"
        )
    rate = (arrived[-1] - arrived[0]) / (t[-1] - t[0])
    if not rate > 0.0:
        raise ValueError(
            "no record arrived between the first and the last time; no rate to compare"
        )
    centred = t - t.mean()
    slope = float(centred @ (arrived - left)) / float(centred @ centred)
    return slope / float(rate)


def is_stable(
    time_s: ArrayLike, records_in: ArrayLike, records_left: ArrayLike, tolerance: float = 0.02
) -> bool:
    """Return whether the backlog does not grow: `backlog_growth` at most `tolerance`."""
    return backlog_growth(time_s, records_in, records_left) <= tolerance


def busy_slot_s(reports: Reports) -> tuple[float, float]:
    """Return the slot-seconds used by independent and by dependent jobs."""
    return (
        float(_column(reports, "busy_independent_s").sum()),
        float(_column(reports, "busy_dependent_s").sum()),
    )


def energy_per_record_j(reports: Reports, duration_s: float, model: EnergyModel) -> float:
    """Return the energy of a run over its records that left well, joules.

    Failed records cost energy and count for nothing. Compare at each agent's own sustainable rate.

    Args:
        reports: float64 [n, len(REPORT_COLUMNS)], all batches of the stretch.
        duration_s: Length of the stretch, over which the idle power runs.
        model: Power model.

    Returns:
        Joules per record; NaN if no record left.
    """
    succeeded, _ = _split(reports)
    energy_j = model.energy_j(duration_s, sum(busy_slot_s(reports)))
    return _ratio(energy_j, float(_column(succeeded, "records").sum()))


def plan_changes(reports: Reports) -> int:
    """Return how often the plan's version changed from one batch to the next, in cut order."""
    order = np.argsort(_column(reports, "batch"), kind="stable")
    return int(np.count_nonzero(np.diff(_column(reports, "plan_version")[order])))


def _column(reports: Reports, name: str) -> NDArray[np.float64]:
    if reports.ndim != 2 or reports.shape[1] != len(REPORT_COLUMNS):
        raise ValueError(f"reports have shape {reports.shape}; expected [n, {len(REPORT_COLUMNS)}]")
    column: NDArray[np.float64] = reports[:, REPORT_INDEX[name]]
    return column


def _split(reports: Reports) -> tuple[Reports, float]:
    """Return the batches that succeeded and the number of records in the others."""
    failed = _column(reports, "failed_jobs") > 0
    return reports[~failed], float(_column(reports, "records")[failed].sum())


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0.0 else math.nan


def _mixture(
    reports: Reports, cap_s: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return lowest latency, highest latency and records of each batch; failed ones at a cap."""
    succeeded, failed_records = _split(reports)
    end_s = _column(succeeded, "end_s")
    low = end_s - _column(succeeded, "last_arrival_s")
    high = end_s - _column(succeeded, "first_arrival_s")
    weight = _column(succeeded, "records")
    if failed_records and math.isfinite(cap_s):
        low, high = np.append(low, cap_s), np.append(high, cap_s)
        weight = np.append(weight, failed_records)
    used = weight > 0.0
    return low[used], high[used], weight[used]


def _distribution(
    low: NDArray[np.float64], high: NDArray[np.float64], weight: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return all breakpoints of a mixture of uniform laws and its distribution function there.

    Returns:
        Breakpoints in ascending order, the share strictly below each, the share up to each.
    """
    share = weight / weight.sum()
    at: NDArray[np.float64] = np.unique(np.concatenate([low, high]))
    first, last = np.searchsorted(at, low), np.searchsorted(at, high)
    spread = high - low > _SMALLEST_SPREAD_S
    jump = np.bincount(first[~spread], weights=share[~spread], minlength=len(at))
    density = share[spread] / (high - low)[spread]
    slope = np.cumsum(
        np.bincount(first[spread], weights=density, minlength=len(at))
        - np.bincount(last[spread], weights=density, minlength=len(at))
    )
    rise = np.concatenate([[0.0], np.maximum(slope[:-1], 0.0) * np.diff(at)])
    upto: NDArray[np.float64] = np.cumsum(rise + jump)
    return at, upto - jump, upto
