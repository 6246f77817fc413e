"""Figures of a stream of requests: pure functions of its reports and arrivals.

Reports come as float64 [n, len(REPORT_COLUMNS)], one row a served batch, in order. A request
counts once it was served or dropped; those that still wait when the reports end are left out.
Latencies are exact, request by request; a dropped request has none of its own and counts as one
that missed its deadline.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from runtime.precision.snapshot import REPORT_COLUMNS, REPORT_INDEX
from simulators.energy import EnergyModel

Reports = NDArray[np.float64]


class StreamSummary(NamedTuple):
    """What a stream was served like; NaN where nothing was.

    Attributes:
        requests: Requests that were served or dropped.
        effective_accuracy: Share of them answered correctly and within the deadline.
        accuracy: Share of the served ones answered correctly, late or not.
        missed_share: Share answered late or dropped.
        dropped_share: Share dropped.
        p50_s: Median latency of the served ones, seconds.
        p99_s: 99th percentile.
        energy_per_request_j: By the energy model, over the requests that were served or dropped.
        switches_per_minute: Changes of the level of a stage, per minute.
        escalated_share: Share of the served ones that were run a second time.
        duration_s: From the first dispatch to the last end, seconds.
    """

    requests: int
    effective_accuracy: float
    accuracy: float
    missed_share: float
    dropped_share: float
    p50_s: float
    p99_s: float
    energy_per_request_j: float
    switches_per_minute: float
    escalated_share: float
    duration_s: float


def arrival_times_s(counts: NDArray[np.int64], tick_s: float) -> NDArray[np.float64]:
    """Return when each request arrives, float64 [requests]: n of a tick at (i + 0.5)/n of it.

    Args:
        counts: int64 [n_ticks], requests of each tick.
        tick_s: Length of a tick, seconds.
    """
    tick = np.repeat(np.arange(len(counts)), counts)
    before = np.cumsum(counts) - counts
    place = (np.arange(len(tick)) - before[tick] + 0.5) / counts[tick]
    return np.asarray((tick + place) * tick_s)


def latencies_s(reports: Reports, arrivals_s: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the latency of every served request, float64 [served], in order of arrival.

    Args:
        reports: float64 [n, len(REPORT_COLUMNS)].
        arrivals_s: float64 [requests], from `arrival_times_s`.
    """
    sizes = _column(reports, "requests").astype(np.int64)
    first = np.repeat(_column(reports, "first_request").astype(np.int64), sizes)
    place = np.arange(len(first)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    end_s = np.repeat(_column(reports, "end_s"), sizes)
    return np.asarray(end_s - arrivals_s[first + place])


def effective_accuracy(reports: Reports) -> float:
    """Return the share of requests answered correctly and within the deadline."""
    in_time = float(_column(reports, "correct_in_time").sum())
    return _ratio(in_time, _resolved(reports))


def missed_share(reports: Reports) -> float:
    """Return the share of requests answered late or dropped."""
    missed = _column(reports, "late").sum() + _column(reports, "dropped").sum()
    return _ratio(float(missed), _resolved(reports))


def energy_j(reports: Reports, duration_s: float, model: EnergyModel) -> float:
    """Return the energy of a stream, joules: a model, not a meter.

    Args:
        reports: float64 [n, len(REPORT_COLUMNS)].
        duration_s: Length of the stream, over which the idle power runs.
        model: Power model; the bank is one slot.
    """
    busy_s = float((_column(reports, "end_s") - _column(reports, "start_s")).sum())
    return model.energy_j(duration_s, busy_s)


def switches_per_minute(reports: Reports, duration_s: float) -> float:
    """Return how often the level of a stage changes, per minute."""
    return _ratio(60.0 * float(_column(reports, "switched").sum()), duration_s)


def summarise(
    reports: Reports, arrivals_s: NDArray[np.float64], model: EnergyModel
) -> StreamSummary:
    """Return all figures of one stream.

    Args:
        reports: float64 [n, len(REPORT_COLUMNS)], rows without requests are left out.
        arrivals_s: float64 [requests], from `arrival_times_s`.
        model: Power model.
    """
    rows = reports[_column(reports, "requests") > 0]
    resolved, served = _resolved(rows), float(_column(rows, "requests").sum())
    start_s, end_s = _column(rows, "start_s"), _column(rows, "end_s")
    duration_s = float(end_s[-1] - start_s[0]) if len(rows) else math.nan
    latency = latencies_s(rows, arrivals_s)
    p50_s, p99_s = np.quantile(latency, (0.5, 0.99)) if len(latency) else (math.nan, math.nan)
    return StreamSummary(
        requests=int(resolved),
        effective_accuracy=effective_accuracy(rows),
        accuracy=_ratio(float(_column(rows, "correct").sum()), served),
        missed_share=missed_share(rows),
        dropped_share=_ratio(float(_column(rows, "dropped").sum()), resolved),
        p50_s=float(p50_s),
        p99_s=float(p99_s),
        energy_per_request_j=_ratio(energy_j(rows, duration_s, model), resolved),
        switches_per_minute=switches_per_minute(rows, duration_s),
        escalated_share=_ratio(float(_column(rows, "escalated").sum()), served),
        duration_s=duration_s,
    )


def _resolved(reports: Reports) -> float:
    return float(_column(reports, "requests").sum() + _column(reports, "dropped").sum())


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0.0 else math.nan


def _column(reports: Reports, name: str) -> NDArray[np.float64]:
    if reports.ndim != 2 or reports.shape[1] != len(REPORT_COLUMNS):
        raise ValueError(f"reports have shape {reports.shape}; expected [n, {len(REPORT_COLUMNS)}]")
    column: NDArray[np.float64] = reports[:, REPORT_INDEX[name]]
    return column
