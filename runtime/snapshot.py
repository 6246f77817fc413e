"""Reports of finished batches and the snapshots that a controller decides on.

The same quantities travel in two forms: objects (`Report`, `Snapshot`) for the real executor and
for people, rows of float64 (`REPORT_COLUMNS`, `SIGNALS`) for batched code. The rows are the
definition; the objects name their columns.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.plan import PLAN_COLUMNS, Plan

REPORT_COLUMNS: tuple[str, ...] = (
    "batch",  # number of the batch, from 0, in cut order
    "plan_version",  # version of the plan in force when the batch was cut
    "records",  # records in the batch
    "first_record",  # index of its first record since the start of the stream
    "first_arrival_s",
    "mean_arrival_s",  # mean over its records
    "last_arrival_s",
    "cut_s",  # when the batch was cut
    "start_s",  # when its first job was admitted
    "end_s",  # when its last job ended
    "tasks",  # task attempts started for it
    "busy_independent_s",  # slot-seconds used by its independent jobs
    "busy_dependent_s",  # slot-seconds used by its dependent jobs
    "failed_jobs",  # jobs that failed or were cancelled; > 0 makes its records failed ones
)

SIGNALS: tuple[str, ...] = (
    "time_s",  # time of the decision
    "records_in",  # arrived since the start
    "records_out",  # left in batches whose jobs all succeeded
    "records_failed",  # left in batches with a failed job
    "records_uncut",  # arrived and not yet in a batch
    "records_pending",  # in batches that have not ended
    "batches_pending",  # cut and not ended
    "oldest_age_s",  # age of the oldest record in the system (0 if none)
    "ready_independent",  # jobs that only lack a parallelism token
    "ready_dependent",
    "running_independent",  # jobs that hold a token
    "running_dependent",
    "queued_tasks_independent",  # runnable tasks without a slot
    "queued_tasks_dependent",
    "busy_slots_independent",  # slots occupied now
    "busy_slots_dependent",
    "reports",  # batches that ended in the period
    "report_records",  # their records
    "accumulation_record_s",  # sum over their records: cut - arrival
    "queueing_record_s",  # sum over their records: start - cut
    "processing_record_s",  # sum over their records: end - start
    "busy_independent_s",  # slot-seconds used in the period
    "busy_dependent_s",
    "tasks_ended",  # tasks ended in the period (a repeated attempt belongs to its task)
    "system_record_s",  # integral over the period of the number of records in the system
    *PLAN_COLUMNS,  # the plan in force
)
"""Columns of a snapshot row: all that a decision may be based on, and all that an operator of the
real system can measure. Sums over 'the period' run from the previous decision to this one."""

SIGNAL_INDEX: dict[str, int] = {name: i for i, name in enumerate(SIGNALS)}
REPORT_INDEX: dict[str, int] = {name: i for i, name in enumerate(REPORT_COLUMNS)}


@dataclass(frozen=True, slots=True)
class Report:
    """What one finished batch measured; field meanings stand at `REPORT_COLUMNS`.

    `job_end_s` holds the end of each job in the application's order (NaN where it was cancelled);
    batched code leaves it empty.
    """

    batch: int
    plan_version: int
    records: int
    first_record: int
    first_arrival_s: float
    mean_arrival_s: float
    last_arrival_s: float
    cut_s: float
    start_s: float
    end_s: float
    tasks: int
    busy_independent_s: float
    busy_dependent_s: float
    failed_jobs: int
    job_end_s: tuple[float, ...] = ()

    @property
    def failed(self) -> bool:
        """Whether a job of the batch failed, which makes all its records failed ones."""
        return self.failed_jobs > 0

    @property
    def accumulation_s(self) -> float:
        """Mean time from a record's arrival to the cut."""
        return self.cut_s - self.mean_arrival_s

    @property
    def queueing_s(self) -> float:
        """Time from the cut to the admission of the first job."""
        return self.start_s - self.cut_s

    @property
    def processing_s(self) -> float:
        """Time from the admission of the first job to the end of the last one."""
        return self.end_s - self.start_s

    @property
    def latency_s(self) -> float:
        """Mean latency of its records: accumulation + queueing + processing."""
        return self.end_s - self.mean_arrival_s

    def to_row(self) -> NDArray[np.float64]:
        """Return the report as float64 of shape [len(REPORT_COLUMNS)]."""
        return np.array([float(getattr(self, name)) for name in REPORT_COLUMNS])

    @classmethod
    def from_row(cls, row: NDArray[np.float64]) -> Report:
        """Build a report from a row of shape [len(REPORT_COLUMNS)]."""
        whole = {"batch", "plan_version", "records", "first_record", "tasks", "failed_jobs"}
        pairs = zip(REPORT_COLUMNS, row.tolist(), strict=True)
        values: dict[str, Any] = {k: int(v) if k in whole else v for k, v in pairs}
        return cls(**values)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the controller sees at a decision.

    Attributes:
        signals: float64 row of shape [len(SIGNALS)].
        reports: Batches that ended since the previous decision, in order of their end.
        plan: The plan in force.
    """

    signals: NDArray[np.float64]
    reports: tuple[Report, ...] = ()
    plan: Plan = field(default_factory=Plan)

    def __post_init__(self) -> None:
        """Refuse a row of the wrong length.

        Raises:
            ValueError: `signals` is not of shape [len(SIGNALS)].
        """
        if self.signals.shape != (len(SIGNALS),):
            raise ValueError(
                f"snapshot signals have shape {self.signals.shape}; expected ({len(SIGNALS)},)"
            )

    def __getitem__(self, name: str) -> float:
        """Return one signal by its name.

        Raises:
            KeyError: No signal has this name.
        """
        return float(self.signals[SIGNAL_INDEX[name]])
