"""What a scheduler has counted: records, slot-seconds, and the reports of a decision period."""

from __future__ import annotations

from dataclasses import dataclass, field

from runtime.cluster.runs import BatchRun
from runtime.cluster.source import Source
from runtime.snapshot import Report


@dataclass(slots=True)
class Period:
    """Sums since the last snapshot; names as in `runtime.snapshot.SIGNALS`."""

    start_s: float
    arrived: int  # records that had arrived at its start
    arrival_sum_s: float  # sum of their arrival times
    inside: int  # records in the system at its start
    busy_s: list[float] = field(default_factory=lambda: [0.0, 0.0])
    left: int = 0  # records that left in the period
    left_time_s: float = 0.0  # sum of the times at which they left
    tasks_ended: int = 0
    reports: list[Report] = field(default_factory=list)


class Ledger:
    """Keeps the books of one stream: nothing in it decides anything.

    Attributes:
        records_out: Records that left in batches whose jobs all succeeded.
        records_failed: Records that left in batches with a failed job.
        busy: Busy slots of the independent and of the dependent pool.
        period: Sums since the last snapshot.
    """

    def __init__(self, source: Source, start_s: float) -> None:
        """Open the books.

        Args:
            source: The stream.
            start_s: Time of the first event.
        """
        self._source = source
        self.records_out = 0
        self.records_failed = 0
        self.busy = [0, 0]
        self._now_s = start_s
        self.period = self._open_period(start_s)

    def _open_period(self, time_s: float) -> Period:
        arrived = self._source.arrived(time_s)
        inside = arrived - self.records_out - self.records_failed
        return Period(time_s, arrived, self._source.arrival_sum_s(arrived), inside)

    def advance(self, time_s: float) -> None:
        """Count the slot-seconds up to a time (never back)."""
        elapsed_s = time_s - self._now_s
        if elapsed_s > 0.0:
            self.period.busy_s[0] += elapsed_s * self.busy[0]
            self.period.busy_s[1] += elapsed_s * self.busy[1]
            self._now_s = time_s

    def close_batch(self, batch: BatchRun, time_s: float) -> Report:
        """Count a batch that ends and return its report."""
        if batch.failed_jobs:
            self.records_failed += batch.records
        else:
            self.records_out += batch.records
        self.period.left += batch.records
        self.period.left_time_s += batch.records * time_s
        report = Report(
            batch=batch.number,
            plan_version=batch.plan_version,
            records=batch.records,
            first_record=batch.first_record,
            first_arrival_s=batch.first_arrival_s,
            mean_arrival_s=batch.mean_arrival_s,
            last_arrival_s=batch.last_arrival_s,
            cut_s=batch.cut_s,
            start_s=time_s if batch.start_s is None else batch.start_s,
            end_s=time_s,
            tasks=batch.tasks,
            busy_independent_s=batch.busy_s[0],
            busy_dependent_s=batch.busy_s[1],
            failed_jobs=batch.failed_jobs,
            job_end_s=tuple(job.end_s for job in batch.jobs),
        )
        self.period.reports.append(report)
        return report

    def close_period(self, time_s: float) -> tuple[dict[str, float], tuple[Report, ...]]:
        """End the period at a time and open the next one.

        Returns:
            The signals that are sums over the period or counts of records that arrived or left,
            and the reports of the period.
        """
        self.advance(time_s)
        period = self.period
        arrived = self._source.arrived(time_s)
        came = arrived - period.arrived
        came_s = came * time_s - (self._source.arrival_sum_s(arrived) - period.arrival_sum_s)
        left_s = period.left * time_s - period.left_time_s
        reports = period.reports
        signals = {
            "time_s": time_s,
            "records_in": arrived,
            "records_out": self.records_out,
            "records_failed": self.records_failed,
            "busy_slots_independent": self.busy[0],
            "busy_slots_dependent": self.busy[1],
            "reports": len(reports),
            "report_records": sum(r.records for r in reports),
            "accumulation_record_s": sum(r.records * r.accumulation_s for r in reports),
            "queueing_record_s": sum(r.records * r.queueing_s for r in reports),
            "processing_record_s": sum(r.records * r.processing_s for r in reports),
            "busy_independent_s": period.busy_s[0],
            "busy_dependent_s": period.busy_s[1],
            "tasks_ended": period.tasks_ended,
            "system_record_s": period.inside * (time_s - period.start_s) + came_s - left_s,
        }
        self.period = self._open_period(time_s)
        return signals, tuple(reports)
