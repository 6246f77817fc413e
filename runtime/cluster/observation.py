"""The one codec between snapshots of a stream cluster and the observation of an agent.

Simulated environments and the real controller use this very class, so a policy sees the same
numbers in both. Everything here can be measured by an operator: no true rate, no duration of a
task that has not run yet, no clock of a trace.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from runtime.encoding import Encoder, Entry, RateWindows
from runtime.snapshot import SIGNAL_INDEX, SIGNALS

RATE_WINDOWS_S = (10.0, 60.0, 300.0)
"""Time constants of the exponentially weighted arrival rates, seconds."""


@dataclass(frozen=True)
class ObservationScale:
    """What the observation is normalised by; part of every policy bundle.

    Attributes:
        slots: Worker slots.
        rate_per_s: A rate that the cluster can carry, records per second.
        period_s: Seconds between decisions.
        max_open: Batches that may be open at once.
        parallelism: Largest parallelism.
        interval_s: Largest batch interval, seconds.
        idle_batches: Largest idle trigger.
    """

    slots: int
    rate_per_s: float
    period_s: float
    max_open: int = 32
    parallelism: int = 16
    interval_s: float = 10.0
    idle_batches: int = 4

    def __post_init__(self) -> None:
        """Refuse scales that would divide by zero.

        Raises:
            ValueError: A scale is not above 0.
        """
        for name, value in asdict(self).items():
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"observation scale {name} is {value}; expected a number > 0")

    def to_mapping(self) -> dict[str, Any]:
        """Return the scale as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_mapping(cls, mapping: dict[str, Any]) -> Self:
        """Build a scale from `to_mapping`'s form.

        Raises:
            ValueError: Missing or unknown keys, or a value that is not above 0.
        """
        try:
            return cls(**mapping)
        except TypeError as error:
            raise ValueError(f"not an observation scale: {error}") from error


_COPIED = (
    "records_uncut",
    "records_pending",
    "batches_pending",
    "oldest_age_s",
    "ready_independent",
    "ready_dependent",
    "running_independent",
    "running_dependent",
    "queued_tasks_independent",
    "queued_tasks_dependent",
    "busy_slots_independent",
    "busy_slots_dependent",
    "share",
    "independent_policy",
    "dependent_policy",
    "parallelism",
    "batch_interval_s",
    "idle_batches",
    "per_pool_parallelism",
)
_DERIVED = (
    "arrival_rate_short",
    "arrival_rate_medium",
    "arrival_rate_long",
    "arrival_trend",
    "accumulation_s",
    "queueing_s",
    "processing_s",
    "processing_to_interval",
    "task_s",
    "utilisation_independent",
    "utilisation_dependent",
    "failed_share",
    "pools_single",
    "pools_hard",
    "pools_soft",
)


def _entries(scale: ObservationScale) -> tuple[Entry, ...]:
    """Return the layout: copied signals, then derived ones."""
    rate, slots = scale.rate_per_s, scale.slots
    both = ("independent", "dependent")
    rows = [
        Entry("records_uncut", "records", 120 * rate, rate, "waiting at the source"),
        Entry("records_pending", "records", 120 * rate, rate, "in unfinished batches"),
        Entry("batches_pending", "batches", scale.max_open, 1, "cut and not ended"),
        Entry("oldest_age_s", "s", 120, 0.5, "age of the oldest record in the system"),
        *(Entry(f"ready_{c}", "jobs", 64, 1, f"{c} jobs without a token") for c in both),
        *(
            Entry(f"running_{c}", "jobs", scale.parallelism, 1, f"{c} jobs with a token")
            for c in both
        ),
        *(
            Entry(f"queued_tasks_{c}", "tasks", 64 * slots, slots, f"{c} tasks without a slot")
            for c in both
        ),
        *(Entry(f"busy_slots_{c}", "slots", slots, 0, f"slots with {c} tasks now") for c in both),
        Entry("share", "1", 1, 0, "share in force"),
        Entry("independent_policy", "1", 1, 0, "FAIR in force"),
        Entry("dependent_policy", "1", 1, 0, "FAIR in force"),
        Entry("parallelism", "jobs", scale.parallelism, 1, "parallelism in force"),
        Entry("batch_interval_s", "s", scale.interval_s, 0.25, "batch interval in force"),
        Entry("idle_batches", "batches", scale.idle_batches, 0, "idle trigger in force"),
        Entry("per_pool_parallelism", "1", 1, 0, "parallelism caps each pool"),
        *(
            Entry(f"arrival_rate_{w}", "records/s", 3 * rate, 0, f"mean over about {s:g} s")
            for w, s in zip(("short", "medium", "long"), RATE_WINDOWS_S, strict=True)
        ),
        Entry("arrival_trend", "1", 4, 0, "short rate over medium rate"),
        Entry("accumulation_s", "s", 60, 0.25, "arrival to cut, last batches"),
        Entry("queueing_s", "s", 60, 0.25, "cut to first job, last batches"),
        Entry("processing_s", "s", 60, 0.25, "first job to last end, last batches"),
        Entry("processing_to_interval", "1", 4, 0, "processing time over batch interval"),
        Entry("task_s", "s", 10, 0.01, "mean slot time of a task, last period"),
        *(Entry(f"utilisation_{c}", "1", 1, 0, f"slots used by {c} tasks") for c in both),
        Entry("failed_share", "1", 1, 0, "failed among the records that left"),
        *(
            Entry(f"pools_{kind}", "1", 1, 0, f"pools in force are {kind}")
            for kind in ("single", "hard", "soft")
        ),
    ]
    assert tuple(entry.name for entry in rows) == _COPIED + _DERIVED
    return tuple(rows)


class ClusterCodec:
    """Encodes the snapshots of N clusters; it remembers past arrivals and the last latencies."""

    def __init__(self, scale: ObservationScale, n: int = 1) -> None:
        """Start with no past.

        Args:
            scale: What to normalise by.
            n: Number of clusters N.
        """
        self.scale = scale
        self.layout = _entries(scale)
        self._encoder = Encoder(self.layout)
        self._source = np.array([SIGNAL_INDEX[name] for name in _COPIED])
        self._windows = RateWindows(RATE_WINDOWS_S, n)
        self._parts = np.zeros((n, 3))
        self._previous = np.zeros((n, 4))  # time, records in, out, failed
        self._raw = np.zeros((n, len(self.layout)))
        self._copied = self._raw[:, : len(_COPIED)]
        self._derived = self._raw[:, len(_COPIED) :]

    @property
    def size(self) -> int:
        """Length of an observation."""
        return len(self.layout)

    def reset(self, which: NDArray[np.int64] | slice = slice(None)) -> None:
        """Forget the past of some clusters."""
        self._windows.reset(which)
        self._parts[which] = 0.0
        self._previous[which] = 0.0

    def encode(self, signals: NDArray[np.float64]) -> NDArray[np.float32]:
        """Turn snapshots into observations, remembering what the next call needs.

        Args:
            signals: float64 [N, len(SIGNALS)]; columns are `runtime.snapshot.SIGNALS`.

        Returns:
            float32 [N, size], every number in [0, 1]; columns are `layout`.
        """
        raw, derived = self._raw, self._derived
        signals.take(self._source, axis=1, out=self._copied, mode="clip")
        now = signals[:, :4]
        passed = now - self._previous
        self._previous[:] = now
        elapsed_s = np.maximum(passed[:, :1], 1e-9)
        rates = self._windows.update(elapsed_s, passed[:, 1:2] / elapsed_s)
        derived[:, :3] = rates
        derived[:, 3] = rates[:, 0] / np.maximum(rates[:, 1], 1e-9)
        records = signals[:, _REPORT_RECORDS, None]
        np.divide(signals[:, _PARTS], records, out=self._parts, where=records > 0.0)
        derived[:, 4:7] = self._parts
        derived[:, 7] = self._parts[:, 2] / np.maximum(signals[:, _INTERVAL], 1e-3)
        busy_s = signals[:, _BUSY]
        derived[:, 8] = (busy_s[:, 0] + busy_s[:, 1]) / np.maximum(signals[:, _TASKS], 1.0)
        np.divide(busy_s, elapsed_s * self.scale.slots, out=derived[:, 9:11])
        failed = passed[:, 3]
        derived[:, 11] = failed / np.maximum(passed[:, 2] + failed, 1.0)
        np.equal(signals[:, _POOLS, None], _KINDS, out=derived[:, 12:])
        return self._encoder.encode(raw)


_REPORT_RECORDS = SIGNAL_INDEX["report_records"]
_PARTS = slice(SIGNAL_INDEX["accumulation_record_s"], SIGNAL_INDEX["processing_record_s"] + 1)
_BUSY = slice(SIGNAL_INDEX["busy_independent_s"], SIGNAL_INDEX["busy_dependent_s"] + 1)
_TASKS = SIGNAL_INDEX["tasks_ended"]
_INTERVAL = SIGNAL_INDEX["batch_interval_s"]
_POOLS = SIGNAL_INDEX["pools"]
_KINDS = np.arange(3.0)
assert SIGNALS[:4] == ("time_s", "records_in", "records_out", "records_failed")
