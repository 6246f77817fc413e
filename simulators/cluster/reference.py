"""A plain-Python simulator of one stream cluster: the oracle of the compiled engine.

Written for reading, with objects, sets and sorting where the engine has arrays and kept orders;
tests demand the same bits from both. It also keeps what the engine has no use for: the log of all
tasks.

Total order of events: by time; at equal times ends of tasks (in the order of their starts), then
the cut of a batch, then the decision. After every event jobs are admitted (oldest batch, then
dependent, then position) and slots are filled before the next event is looked at. Jobs that end at
the same instant (a job and those that are cancelled by its failure) end in the order in which that
became known: first in, first out.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from runtime.application import Application, task_slice
from runtime.plan import Plan, Policy, Pools, hard_slots
from runtime.snapshot import SIGNALS, Report, Snapshot
from simulators.cluster.profile import Profile
from simulators.cluster.reference_runs import BatchRun, JobRun, StageRun, TaskLog
from simulators.noise import uniform_reference
from simulators.reference_arrivals import ReferenceArrivals


class ReferenceCluster:
    """One simulated cluster, step by step as the rules are written."""

    def __init__(
        self, application: Application, profile: Profile, slots: int, *, max_open: int = 32
    ) -> None:
        """Describe the cluster; `reset` must be called before `advance`.

        Args:
            application: The jobs of every batch.
            profile: Costs of all its stages.
            slots: Number of slots.
            max_open: Batches that may be cut and not ended.
        """
        self.application, self.profile = application, profile
        self.slots, self.max_open = slots, max_open
        self.on_event: Callable[[], None] = lambda: None
        """Called after every event, when slots have been filled; tests watch invariants here."""

    def reset(self, key: int, counts: NDArray[np.int64], tick_s: float, plan: Plan) -> None:
        """Empty the cluster and give it arrivals: int64 [n_ticks] records per tick."""
        self.key, self.now_s = key, 0.0
        self.arrivals = ReferenceArrivals(counts, tick_s)
        self.open: list[BatchRun] = []
        self.running: list[tuple[float, int, StageRun, bool]] = []
        self.busy = [0, 0]
        self.cut_records = self.out_records = self.failed_records = 0
        self.cut_arrival_sum = 0.0
        self.batches = self.launches = self.admissions = 0
        self.last_cut_s, self.next_cut_s = 0.0, math.inf
        self.version = -1
        self.plan = plan
        self.ending: deque[JobRun] = deque()
        self.task_log: list[TaskLog] = []
        self.reports: list[Report] = []
        self.signals = np.zeros(len(SIGNALS))
        self._take_plan(plan, was_clocked=False)

    # Plans ------------------------------------------------------------------------------------

    def _take_plan(self, plan: Plan, *, was_clocked: bool) -> None:
        self.plan = plan
        self.version += 1
        if plan.idle_batches > 0:
            self._schedule_idle_cut()
        elif not was_clocked:
            self.next_cut_s = max(self.now_s, self.last_cut_s + plan.batch_interval_s)

    def _schedule_idle_cut(self) -> None:
        if len(self.open) >= min(self.plan.idle_batches, self.max_open):
            self.next_cut_s = math.inf
            return
        arrival_s = self.arrivals.time_s(self.cut_records)
        due_s = max(self.last_cut_s + self.plan.batch_interval_s, arrival_s)
        self.next_cut_s = max(due_s, self.now_s)

    # Batches ----------------------------------------------------------------------------------

    def _cut(self) -> None:
        idle = self.plan.idle_batches > 0
        self.last_cut_s = self.now_s
        if not idle:
            self.next_cut_s = self.now_s + self.plan.batch_interval_s
        count, total = self.arrivals.until(self.now_s)
        if idle and count <= self.cut_records:
            count, total = self.cut_records + 1, self.cut_arrival_sum + self.now_s
        if count > self.cut_records and len(self.open) < self.max_open:
            self._open_batch(count, total)
        if idle:
            self._schedule_idle_cut()

    def _open_batch(self, count: int, total: float) -> None:
        first = self.cut_records
        mean_s = (total - self.cut_arrival_sum) / (count - first)
        arrivals_s = (self.arrivals.time_s(first), mean_s, self.arrivals.time_s(count - 1))
        batch = BatchRun(self.batches, self.version, count - first, first, arrivals_s, self.now_s)
        self.batches += 1
        self.cut_records, self.cut_arrival_sum = count, total
        older = self.open[-1] if self.open else None
        self.open.append(batch)
        number = 0
        for position, job in enumerate(self.application.jobs):
            run = JobRun(position, job, self.application.dependent[position], batch)
            batch.jobs.append(run)
            for stage, parents in zip(job.stages, job.stage_parents(), strict=True):
                cost = self.profile.costs[job.name, stage.name]
                waits = {number - len(run.stages) + p for p in parents}
                run.stages.append(StageRun(number, stage, cost, run, waits))
                number += 1
            if job.stateful and older and older.jobs[position].phase != "ended":
                run.waits_for.append(older.jobs[position])
        for run in batch.jobs:
            run.waits_for += [batch.jobs[p] for p in self.application.predecessors[run.position]]
            self._make_ready(run)

    def _make_ready(self, run: JobRun) -> None:
        """A job that waits for nothing any more is ready, or ends at once if cancelled."""
        if run.waits_for or run.phase != "waiting":
            return
        run.phase = "ready"
        if run.failed:
            self.ending.append(run)

    def _end_jobs(self) -> None:
        """End the jobs that end now, in the order in which that became known."""
        while self.ending:
            self._end_job(self.ending.popleft())

    def _end_job(self, run: JobRun) -> None:
        run.phase = "ended"
        batch = run.batch
        for other in batch.jobs:
            if run in other.waits_for:
                other.failed |= run.failed
        waiting = [r for b in self.open for r in b.jobs if run in r.waits_for]
        for other in waiting:
            other.waits_for.remove(run)
            self._make_ready(other)
        if all(r.phase == "ended" for r in batch.jobs):
            self._end_batch(batch)

    def _end_batch(self, batch: BatchRun) -> None:
        self.open.remove(batch)
        failed_jobs = sum(run.failed for run in batch.jobs)
        if failed_jobs:
            self.failed_records += batch.records
        else:
            self.out_records += batch.records
        self.out_area += batch.records * (self.period_end_s - self.now_s)
        start_s = self.now_s if batch.start_s is None else batch.start_s
        self.reports.append(
            Report(
                batch.number,
                batch.version,
                batch.records,
                batch.first_record,
                *batch.arrivals_s,
                batch.cut_s,
                start_s,
                self.now_s,
                batch.tasks,
                batch.busy_s[0],
                batch.busy_s[1],
                failed_jobs,
            )
        )
        if self.plan.idle_batches > 0:
            self._schedule_idle_cut()

    # Jobs, stages, tasks ----------------------------------------------------------------------

    def _jobs(self, phase: str) -> list[JobRun]:
        return [run for batch in self.open for run in batch.jobs if run.phase == phase]

    def _admit(self) -> None:
        for run in sorted(
            self._jobs("ready"), key=lambda r: (r.batch.number, not r.dependent, r.position)
        ):
            holders = [
                r
                for r in self._jobs("admitted")
                if not self.plan.per_pool_parallelism or r.dependent == run.dependent
            ]
            if len(holders) >= self.plan.parallelism:
                continue
            run.phase = "admitted"
            run.admission = self.admissions
            self.admissions += 1
            if run.batch.start_s is None:
                run.batch.start_s = self.now_s
            for stage in run.stages:
                self._make_runnable(stage)

    def _make_runnable(self, run: StageRun) -> None:
        if not run.waits_for and run.tasks == 0:
            run.records = run.stage.stage_records(run.job.batch.records)
            run.tasks = run.stage.task_count(run.job.batch.records)

    def task_sets(self, dependent: bool) -> list[StageRun]:
        """Return the stages of a class that have unstarted tasks, in FIFO order."""
        sets = [
            stage
            for run in self._jobs("admitted")
            if run.dependent == dependent
            for stage in run.stages
            if stage.unstarted > 0
        ]
        return sorted(sets, key=lambda stage: (stage.job.admission, stage.number))

    def _serve(self, sets: list[StageRun], policy: Policy) -> StageRun:
        if policy is Policy.FIFO:
            return sets[0]
        return min(sets, key=lambda stage: stage.running)  # the first of equals: FIFO order

    def _next_task_set(self) -> StageRun | None:
        independent, dependent = self.task_sets(False), self.task_sets(True)
        plan = self.plan
        if plan.pools is Pools.SINGLE:
            both = sorted(independent + dependent, key=lambda s: (s.job.admission, s.number))
            return self._serve(both, plan.independent_policy) if both else None
        if plan.pools is Pools.HARD:
            targets = hard_slots(plan.share, self.slots, *self.application.class_counts)
            independent = independent if self.busy[0] < targets[0] else []
            dependent = dependent if self.busy[1] < targets[1] else []
        elif independent and dependent:
            if self._dependent_first():
                independent = []
            else:
                dependent = []
        if dependent:
            return self._serve(dependent, plan.dependent_policy)
        return self._serve(independent, plan.independent_policy) if independent else None

    def _dependent_first(self) -> bool:
        share = self.plan.share
        if share in (0.0, 1.0):
            return share == 0.0
        return self.busy[1] * share <= self.busy[0] * (1.0 - share)

    def _fill(self) -> None:
        while sum(self.busy) < self.slots:
            stage = self._next_task_set()
            if stage is None:
                return
            self._start_task(stage)

    def _attempt_s(self, run: StageRun, records: int, draw: float) -> float:
        cost = run.cost
        residual = float(cost.residual[int(draw * len(cost.residual))])
        busy = min(sum(self.busy), len(cost.slowdown) - 1)
        compute = (cost.fixed_s + cost.per_record_s * records) * residual
        return cost.wait_s + compute * float(cost.slowdown[busy])

    def _start_task(self, run: StageRun) -> None:
        batch, klass = run.job.batch, int(run.job.dependent)
        offset, records = task_slice(run.records, run.tasks, run.started)
        first = batch.first_record + offset
        run.started += 1
        run.running += 1
        self.busy[klass] += 1

        def draw(purpose: int) -> float:
            return uniform_reference(self.key, run.number, first, purpose)

        took_s = self._attempt_s(run, records, draw(0))
        batch.tasks += 1
        fails = run.cost.failure_probability > draw(1)
        if fails:
            took_s += self._attempt_s(run, records, draw(2))
            batch.tasks += 1
            fails = run.cost.failure_probability > draw(3)
        batch.busy_s[klass] += took_s
        end_s = self.now_s + took_s
        heapq.heappush(self.running, (end_s, self.launches, run, fails))
        self.launches += 1
        self.task_log.append(
            TaskLog(
                batch.number,
                run.job.position,
                run.number,
                records,
                sum(self.busy),
                self.now_s,
                end_s,
            )
        )

    def _end_task(self) -> None:
        _, _, run, fails = heapq.heappop(self.running)
        job = run.job
        run.running -= 1
        self.busy[job.dependent] -= 1
        self.tasks_ended += 1
        if fails:
            job.failed = True
            for stage in job.stages:
                stage.tasks = stage.started
        if job.failed:
            if job.running_tasks == 0:
                self.ending.append(job)
        elif run.unstarted == 0 and run.running == 0:
            for stage in job.stages:
                if run.number in stage.waits_for:
                    stage.waits_for.remove(run.number)
                    self._make_runnable(stage)
            done = all(s.tasks > 0 and s.unstarted == s.running == 0 for s in job.stages)
            if done:
                self.ending.append(job)
        self._end_jobs()

    # The loop ---------------------------------------------------------------------------------

    def advance(self, plan: Plan, until_s: float) -> Snapshot:
        """Apply a plan, simulate up to a time and return what the controller sees then."""
        if not np.array_equal(plan.to_row(), self.plan.to_row()):
            self._take_plan(plan, was_clocked=self.plan.idle_batches == 0)
        self.period_end_s, self.out_area, self.tasks_ended = until_s, 0.0, 0
        self.reports = []
        start_s, left = self.now_s, self.out_records + self.failed_records
        busy_s = [0.0, 0.0]
        while True:
            self._admit()
            self._fill()
            self.on_event()
            task_s = self.running[0][0] if self.running else math.inf
            event_s = min(task_s, self.next_cut_s)
            elapsed_s = min(event_s, until_s) - self.now_s
            busy_s = [busy_s[k] + elapsed_s * self.busy[k] for k in range(2)]
            self.now_s = min(event_s, until_s)
            if event_s > until_s:
                break
            if task_s <= self.next_cut_s:
                self._end_task()
            else:
                self._cut()
        self.signals = self._read_signals(start_s, left, busy_s)
        return Snapshot(self.signals, tuple(self.reports), self.plan)

    def _read_signals(self, start_s: float, left: int, busy_s: list[float]) -> NDArray[np.float64]:
        count_0, sum_0 = self.arrivals.until(start_s)
        count, total = self.arrivals.until(self.now_s)
        count = max(count, self.cut_records)
        oldest_s = self.now_s
        if self.open:
            oldest_s = self.open[0].arrivals_s[0]
        elif count > self.cut_records:
            oldest_s = self.arrivals.time_s(self.cut_records)
        inside = (count_0 - left) * (self.now_s - start_s)
        arrived_area = (count - count_0) * self.now_s - (total - sum_0)
        values: dict[str, float] = {
            "time_s": self.now_s,
            "records_in": count,
            "records_out": self.out_records,
            "records_failed": self.failed_records,
            "records_uncut": count - self.cut_records,
            "records_pending": sum(batch.records for batch in self.open),
            "batches_pending": len(self.open),
            "oldest_age_s": max(self.now_s - oldest_s, 0.0),
            "reports": len(self.reports),
            "tasks_ended": self.tasks_ended,
            "system_record_s": inside + arrived_area - self.out_area,
        }
        for name in ("report_records", "accumulation_record_s", "queueing_record_s"):
            values[name] = 0.0
        values["processing_record_s"] = 0.0
        for report in self.reports:
            values["report_records"] += report.records
            values["accumulation_record_s"] += report.records * report.accumulation_s
            values["queueing_record_s"] += report.records * report.queueing_s
            values["processing_record_s"] += report.records * report.processing_s
        for klass, name in enumerate(("independent", "dependent")):
            ready = [r for r in self._jobs("ready") if r.dependent == klass]
            admitted = [r for r in self._jobs("admitted") if r.dependent == klass]
            values[f"ready_{name}"] = len(ready)
            values[f"running_{name}"] = len(admitted)
            values[f"queued_tasks_{name}"] = sum(s.unstarted for r in admitted for s in r.stages)
            values[f"busy_slots_{name}"] = self.busy[klass]
            values[f"busy_{name}_s"] = busy_s[klass]
        names = SIGNALS[: -len(self.plan.to_row())]
        return np.concatenate([[float(values[name]) for name in names], self.plan.to_row()])
