"""Which task starts when: the scheduling decisions, without clock and threads.

Whoever drives a scheduler tells it times that never go back and what happened: a timer was due,
a task ended, a plan came. `start_tasks` then names the tasks that take a slot now. The same
sequence of calls gives the same schedule, on a wall clock or in virtual time.

Order at equal times: ends of tasks (in the order of their starts), then the cut of a batch, then
the decision; after each of them `start_tasks`.
"""

from __future__ import annotations

import math

import numpy as np

from runtime.application import Application
from runtime.cluster.cuts import Cutter
from runtime.cluster.ledger import Ledger
from runtime.cluster.queues import ReadyJobs, RunnableTaskSets
from runtime.cluster.runs import (
    BatchRun,
    JobEnd,
    JobRun,
    Outcome,
    Task,
    TaskSet,
    create_task_sets,
    next_task,
)
from runtime.cluster.source import Source
from runtime.plan import PLAN_COLUMNS, Plan, Pools, hard_slots
from runtime.snapshot import SIGNALS, Report, Snapshot


class Scheduler:
    """Cuts batches, admits jobs and hands tasks to slots, under the plan in force.

    A failed job drops its unstarted tasks, drains the running ones and cancels its successors in
    the batch. Changing the plan kills nothing: slots and tokens drain.

    Attributes:
        plan: The plan in force.
        slots: Number of slots.
        reports: Of all batches that have ended, in order of their end.
    """

    def __init__(
        self,
        application: Application,
        source: Source,
        slots: int,
        plan: Plan,
        max_open_batches: int = 64,
    ) -> None:
        """Start at time 0 with nothing in the system.

        Args:
            application: The jobs of every batch.
            source: The stream.
            slots: Number of slots, at least 1.
            plan: The first plan.
            max_open_batches: Batches that may be pending at once, at least 1; beyond, records
                wait uncut.

        Raises:
            ValueError: `slots` or `max_open_batches` below 1.
        """
        for name, value in (("slots", slots), ("max_open_batches", max_open_batches)):
            if value < 1:
                raise ValueError(f"{name} is {value}; expected at least 1")
        self.plan = plan
        self.slots = slots
        self.reports: list[Report] = []
        self._application = application
        self._source = source
        self._successors = [
            [k for k, waits in enumerate(application.predecessors) if j in waits]
            for j in range(len(application.jobs))
        ]
        self._stage_parents = [job.stage_parents() for job in application.jobs]
        self._ledger = Ledger(source, 0.0)
        self._cutter = Cutter(source, plan, max_open_batches, 0.0)
        self._open: dict[int, BatchRun] = {}  # in cut order
        self._ready = ReadyJobs()
        self._runnable = RunnableTaskSets()
        self._holders = [0, 0]
        self._admissions = 0
        self._started = 0
        self._running: dict[int, Task] = {}
        self._targets = self._hard_targets()

    @property
    def running_tasks(self) -> int:
        """Tasks that occupy a slot."""
        return len(self._running)

    @property
    def running_jobs(self) -> tuple[int, int]:
        """Independent and dependent jobs that hold a token."""
        return self._holders[0], self._holders[1]

    @property
    def busy_slots(self) -> tuple[int, int]:
        """Slots occupied by independent and by dependent tasks."""
        return self._ledger.busy[0], self._ledger.busy[1]

    @property
    def queued_tasks(self) -> tuple[int, int]:
        """Runnable tasks without a slot, independent and dependent."""
        return self._runnable.queued_tasks

    @property
    def empty(self) -> bool:
        """Whether nothing is in the system and nothing will come."""
        return not self._open and self._cutter.records >= self._source.records

    def next_timer_s(self) -> float:
        """Return when `fire_timers` has something to do next; infinity if only after an event."""
        if self._cutter.records >= self._source.records:
            return math.inf
        return self._cutter.next_cut_s

    def fire_timers(self, time_s: float) -> None:
        """Make every cut that is due by a time, each as of its own due time."""
        while self.next_timer_s() <= time_s:
            batch = self._cutter.cut(self.plan, len(self._open))
            if batch is not None:
                self._open_batch(batch)

    def start_tasks(self, time_s: float) -> list[Task]:
        """Admit jobs and give free slots to tasks.

        Returns:
            The tasks that start now, in order. Each must be ended by `task_ended` once.
        """
        self._ledger.advance(time_s)
        while (job := self._ready.next_job(self.plan, self._holders)) is not None:
            self._admit(job, time_s)
        started = []
        while len(self._running) < self.slots:
            task_set = self._runnable.next_task_set(self.plan, self._ledger.busy, self._targets)
            if task_set is None:
                break
            started.append(self._start_task(task_set, time_s))
        return started

    def task_ended(
        self, task: Task, time_s: float, attempts: int = 1, failed: bool = False
    ) -> list[JobEnd]:
        """Take note that a task left its slot.

        Args:
            task: A running task.
            time_s: When it ended.
            attempts: How often it was tried (a failed attempt is repeated in the same slot).
            failed: Whether its last attempt failed, which fails its job.

        Returns:
            The jobs that ended thereby, cancelled ones included, in order.

        Raises:
            ValueError: The task is not running.
        """
        if self._running.pop(task.number, None) is not task:
            raise ValueError(f"task {task.number} is not running; every task ends once")
        self._ledger.advance(time_s)
        job, task_set = task.task_set.job, task.task_set
        self._ledger.busy[job.pool] -= 1
        self._ledger.period.tasks_ended += 1
        job.batch.tasks += attempts
        job.batch.busy_s[job.pool] += time_s - task.start_s
        task_set.running -= 1
        job.running -= 1
        if failed:
            self._fail(job)
        if job.failing:
            return self._end_jobs(job, Outcome.FAILED, time_s) if job.running == 0 else []
        if not task_set.ended:
            return []
        job.stages_left -= 1
        if job.stages_left == 0:
            return self._end_jobs(job, Outcome.SUCCEEDED, time_s)
        self._release_children(task_set)
        return []

    def apply(self, plan: Plan, time_s: float) -> None:
        """Put a plan in force; it takes effect without killing anything."""
        self._cutter.apply(plan, self.plan, len(self._open), time_s)
        self.plan = plan
        self._targets = self._hard_targets()

    def snapshot(self, time_s: float) -> Snapshot:
        """Close the decision period at a time and return what the controller sees."""
        signals, reports = self._ledger.close_period(time_s)
        cut = self._cutter.records
        pending = cut - self._ledger.records_out - self._ledger.records_failed
        ready, queued = self._ready.counts, self.queued_tasks
        signals.update(
            records_uncut=signals["records_in"] - cut,
            records_pending=pending,
            batches_pending=len(self._open),
            oldest_age_s=self._oldest_age_s(time_s),
            ready_independent=ready[0],
            ready_dependent=ready[1],
            running_independent=self._holders[0],
            running_dependent=self._holders[1],
            queued_tasks_independent=queued[0],
            queued_tasks_dependent=queued[1],
        )
        row = np.concatenate(
            [
                np.array([signals[name] for name in SIGNALS if name not in PLAN_COLUMNS], float),
                self.plan.to_row(),
            ]
        )
        return Snapshot(signals=row, reports=reports, plan=self.plan)

    def _oldest_age_s(self, time_s: float) -> float:
        first_s = self._source.arrival_s(self._cutter.records)
        if self._open:
            first_s = next(iter(self._open.values())).first_arrival_s
        return max(time_s - first_s, 0.0)

    def _hard_targets(self) -> tuple[int, int]:
        if self.plan.pools is not Pools.HARD:
            return self.slots, self.slots
        return hard_slots(self.plan.share, self.slots, *self._application.class_counts)

    def _open_batch(self, batch: BatchRun) -> None:
        """Create the jobs of a batch; those that wait for nothing become ready."""
        older = next(reversed(self._open.values())) if self._open else None
        self._open[batch.number] = batch
        batch.jobs_left = len(self._application.jobs)
        for position, spec in enumerate(self._application.jobs):
            waits = len(self._application.predecessors[position])
            if spec.stateful and older is not None and older.jobs[position].outcome is None:
                waits += 1
            pool = int(self._application.dependent[position])
            job = JobRun(batch=batch, position=position, pool=pool, waits=waits)
            batch.jobs.append(job)
            if waits == 0:
                self._ready.add(job)

    def _admit(self, job: JobRun, time_s: float) -> None:
        """Give a job a token and make its root stages runnable."""
        job.admission = self._admissions
        self._admissions += 1
        self._holders[job.pool] += 1
        if job.batch.start_s is None:
            job.batch.start_s = time_s
        job.task_sets = create_task_sets(self._application.jobs[job.position], job)
        job.stages_left = len(job.task_sets)
        for task_set in job.task_sets:
            if task_set.waits == 0:
                self._runnable.add(task_set)

    def _start_task(self, task_set: TaskSet, time_s: float) -> Task:
        self._ledger.busy[task_set.job.pool] += 1
        task = next_task(task_set, self._started, len(self._running) + 1, time_s)
        if task_set.unstarted == 0:
            self._runnable.remove(task_set)
        self._running[task.number] = task
        self._started += 1
        return task

    def _release_children(self, ended: TaskSet) -> None:
        """Make the stages runnable that waited for nothing but an ended one."""
        job = ended.job
        parents = self._stage_parents[job.position]
        for task_set in job.task_sets:
            if ended.stage in parents[task_set.stage]:
                task_set.waits -= 1
                if task_set.waits == 0:
                    self._runnable.add(task_set)

    def _fail(self, job: JobRun) -> None:
        """Drop the unstarted tasks of a job; running ones go on to their end."""
        job.failing = True
        for task_set in job.task_sets:
            self._runnable.remove(task_set)

    def _end_jobs(self, job: JobRun, outcome: Outcome, time_s: float) -> list[JobEnd]:
        """End a job and, in zero time, every job that is cancelled thereby."""
        self._holders[job.pool] -= 1
        job.end_s = time_s
        ending = [(job, outcome)]
        ends: list[JobEnd] = []
        for ended, how in ending:  # grows while it is walked
            ended.outcome = how
            for waiting in self._waiting_for(ended):
                if waiting.batch is ended.batch and how is not Outcome.SUCCEEDED:
                    waiting.upstream_failed = True
                waiting.waits -= 1
                if waiting.waits == 0 and waiting.upstream_failed:
                    ending.append((waiting, Outcome.CANCELLED))
                elif waiting.waits == 0:
                    self._ready.add(waiting)
            ends.append(JobEnd(ended.batch.number, ended.position, how, self._count_end(ended)))
            if ends[-1].last:
                self._end_batch(ended.batch, time_s)
        return ends

    def _waiting_for(self, job: JobRun) -> list[JobRun]:
        """Return the jobs that wait for a job: successors, and its next batch if stateful."""
        waiting = [job.batch.jobs[k] for k in self._successors[job.position]]
        younger = self._open.get(job.batch.number + 1)
        if self._application.jobs[job.position].stateful and younger is not None:
            waiting.append(younger.jobs[job.position])
        return waiting

    def _count_end(self, job: JobRun) -> bool:
        """Count an ended job of its batch; return whether it was the last one."""
        job.batch.jobs_left -= 1
        job.batch.failed_jobs += job.outcome is not Outcome.SUCCEEDED
        return job.batch.jobs_left == 0

    def _end_batch(self, batch: BatchRun, time_s: float) -> None:
        del self._open[batch.number]
        self.reports.append(self._ledger.close_batch(batch, time_s))
        if self.plan.idle_batches > 0:
            self._cutter.schedule_idle(self.plan, len(self._open), time_s)
