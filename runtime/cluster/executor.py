"""Real execution on one machine: worker slots driven by the scheduler on a wall clock.

Slots are threads, not processes. The bodies of tasks wait for a store or run torch kernels, and
both release the interpreter lock; inputs and results travel along the edges without a copy, which
a process pool has to pickle or to place in shared memory. Measured by
`benchmarks/executor_overhead.py` on 2 cores in 2026-11, 8 slots scoring 96 records after a wait of
25 ms: the body takes 30 ms in a thread and 29 ms in a process, but a slot of a thread pool loses
1 to 2 ms between two bodies, one of a process pool 9 to 12 ms. The whole executor takes 21 to
27 us between two empty tasks on one slot, and 41 to 73 us between two waits on each of 8 slots
(medians; 99th percentile 0.4 to 0.6 ms).
"""

from __future__ import annotations

import dataclasses
import logging
import queue
import threading
import time
from collections import deque
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.cluster.results import Results
from runtime.cluster.runs import Task
from runtime.cluster.scheduler import Scheduler
from runtime.cluster.source import Source
from runtime.cluster.stream_jobs import StreamJobs, TaskInput
from runtime.cluster.task_log import Row, task_time_table
from runtime.plan import Plan
from runtime.snapshot import Report, Snapshot

MAX_ATTEMPTS = 2
KEPT_FAILURES = 100

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Failure:
    """A failed attempt of a task.

    Attributes:
        job: Name of the job.
        stage: Name of the stage.
        batch: Number of the batch.
        index: Place of the task in its stage.
        attempt: 0 for the first attempt, 1 for its repetition, which fails the job.
        error: What was raised.
    """

    job: str
    stage: str
    batch: int
    index: int
    attempt: int
    error: BaseException


@dataclass(frozen=True, slots=True)
class _Tried:
    """What became of a task in its slot."""

    result: Any
    attempts: int
    failed: bool


class _Slot:
    """One worker thread and the mailbox of its next task (None ends it)."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.mailbox: queue.SimpleQueue[tuple[Task, TaskInput] | None] = queue.SimpleQueue()
        self.thread: threading.Thread | None = None


class LocalExecutor:
    """Runs the jobs of a stream on worker slots of this process.

    A context manager: leaving it, also by an exception or Ctrl-C, starts nothing more, lets the
    running tasks end and keeps the counts; records in = out + failed + pending + uncut always.

    Times are seconds since `start`. `start`, `snapshot`, `apply`, `drain` and `stop` may be called
    from any thread.
    """

    def __init__(
        self,
        jobs: StreamJobs,
        source: Source,
        plan: Plan,
        slots: int,
        max_open_batches: int = 64,
    ) -> None:
        """Prepare; nothing runs before `start`.

        Args:
            jobs: The application and its code.
            source: The stream; it runs in real time from `start` on. The executor ends it on
                `drain` and `stop`, so it serves one executor.
            plan: The first plan.
            slots: Number of worker slots, at least 1.
            max_open_batches: Batches that may be pending at once; beyond, records wait uncut.

        Raises:
            ValueError: `slots` or `max_open_batches` below 1.
        """
        self.failures: deque[Failure] = deque(maxlen=KEPT_FAILURES)
        self._jobs = jobs
        self._source = source
        self._scheduler = Scheduler(jobs.application, source, slots, plan, max_open_batches)
        self._results = Results(jobs)
        self._log: list[Row] | None = None
        self._slots = [_Slot(number) for number in range(slots)]
        self._idle = list(self._slots)
        self._lock = threading.Lock()
        self._timer_moved = threading.Condition(self._lock)
        self._task_ended = threading.Condition(self._lock)
        self._ready = threading.Barrier(slots + 1)
        self._timer_s = float("inf")
        self._origin_s: float | None = None
        self._stopping = False
        self._stopped_s: float | None = None
        self._broken: BaseException | None = None

    @property
    def slots(self) -> int:
        """Number of worker slots."""
        return self._scheduler.slots

    @property
    def plan(self) -> Plan:
        """The plan in force."""
        return self._scheduler.plan

    @property
    def time_s(self) -> float:
        """Seconds since `start` (0 before it); stands still once stopped."""
        if self._stopped_s is not None:
            return self._stopped_s
        return 0.0 if self._origin_s is None else time.monotonic() - self._origin_s

    @property
    def reports(self) -> tuple[Report, ...]:
        """Reports of all batches that have ended, in order of their end."""
        with self._lock:
            return tuple(self._scheduler.reports)

    def start(self, log_tasks: bool = False) -> None:
        """Start the worker slots and then the stream.

        Args:
            log_tasks: Whether to keep a row per task for `task_log`.

        Raises:
            RuntimeError: Started before, or a worker could not be prepared.
        """
        if self._origin_s is not None:
            raise RuntimeError("the executor was started before; create a new one for each stream")
        self._log = [] if log_tasks else None
        for slot in self._slots:
            slot.thread = threading.Thread(
                target=self._work, args=(slot,), name=f"slot-{slot.number}", daemon=True
            )
            slot.thread.start()
        self._ready.wait()
        self._origin_s = time.monotonic()
        if self._broken is not None:
            self._stopping = True
            self.stop()
            self._check()
        threading.Thread(target=self._keep_time, name="timer", daemon=True).start()

    def snapshot(self) -> Snapshot:
        """Return what has happened since the last snapshot and what the state is now.

        Raises:
            RuntimeError: Not started, or a thread of the executor broke down.
        """
        with self._lock:
            self._check()
            self._advance()
            return self._scheduler.snapshot(self.time_s)

    def apply(self, plan: Plan) -> None:
        """Put a plan in force; running tasks and jobs go on to their end.

        Raises:
            RuntimeError: Not started, or a thread of the executor broke down.
        """
        with self._lock:
            self._check()
            self._advance()
            self._scheduler.apply(plan, self.time_s)
            self._advance()

    def wait(self, timeout_s: float) -> bool:
        """Wait until the last record of the source has left; return whether it has.

        Raises:
            RuntimeError: Not started, or a thread of the executor broke down.
        """
        with self._lock:
            self._check()
            self._task_ended.wait_for(
                lambda: self._scheduler.empty or self._broken or self._stopping, timeout_s
            )
            self._check()
            return self._scheduler.empty

    def drain(self, timeout_s: float) -> bool:
        """Let nothing more arrive and wait until all that arrived has left.

        Args:
            timeout_s: How long to wait at most.

        Returns:
            Whether all records have left.

        Raises:
            RuntimeError: Not started, or a thread of the executor broke down.
        """
        with self._lock:
            self._check()
            self._source.end_at(self.time_s)
        return self.wait(timeout_s)

    def stop(self, timeout_s: float = 30.0) -> None:
        """Start nothing more and wait for the running tasks; what has not run stays pending.

        Raises:
            TimeoutError: A task was still running after `timeout_s`; its thread is left behind.
        """
        with self._lock:
            if self._origin_s is None or self._stopped_s is not None:
                return
            self._stopping = True
            self._source.end_at(self.time_s)
            self._timer_moved.notify_all()
            quiet = self._task_ended.wait_for(
                lambda: self._scheduler.running_tasks == 0 or self._broken, timeout_s
            )
            self._stopped_s = self.time_s
        for slot in self._slots:
            slot.mailbox.put(None)
        if not quiet:
            raise TimeoutError(
                f"{self._scheduler.running_tasks} tasks were still running {timeout_s} s after the "
                "executor was told to stop; a stage of the application hangs"
            )
        for slot in self._slots:
            if slot.thread is not None:
                slot.thread.join()

    def task_log(self) -> NDArray[np.void]:
        """Return the times of all tasks that have ended, a structured array [n].

        Raises:
            RuntimeError: `start` was not told to keep them.
        """
        if self._log is None:
            raise RuntimeError("no task log was kept; start the executor with log_tasks=True")
        with self._lock:
            return task_time_table(self._jobs.application, self._log)

    def committed_state(self, job: str) -> Any:
        """Return the committed state of a stateful job.

        Raises:
            KeyError: No stateful job has this name.
        """
        with self._lock:
            return self._results.committed_state(job)

    def __enter__(self) -> LocalExecutor:
        """Start unless started."""
        if self._origin_s is None:
            self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop."""
        self.stop()

    def _check(self) -> None:
        if self._broken is not None:
            raise RuntimeError("the executor broke down") from self._broken
        if self._origin_s is None:
            raise RuntimeError("the executor has not been started")

    def _advance(self) -> None:
        """Do what is due now: cut, admit, hand tasks to idle slots (lock held)."""
        if self._stopping:
            return
        now_s = self.time_s
        self._scheduler.fire_timers(now_s)
        for task in self._scheduler.start_tasks(now_s):
            # The slot that became idle last has the warmest caches and may be the caller's own.
            self._idle.pop().mailbox.put((task, self._results.task_input(task)))
        if self._scheduler.next_timer_s() < self._timer_s:
            self._timer_moved.notify()

    def _keep_time(self) -> None:
        """Body of the timer thread: wake up for every cut."""
        with self._lock:
            while not self._stopping and self._broken is None:
                try:
                    self._advance()
                except BaseException as error:  # anything else would leave the stream hanging
                    self._break_down(error)
                    return
                self._timer_s = self._scheduler.next_timer_s()
                left_s = self._timer_s - self.time_s
                self._timer_moved.wait(None if left_s == float("inf") else max(left_s, 0.0))

    def _work(self, slot: _Slot) -> None:
        """Body of a worker thread."""
        try:
            self._jobs.prepare_worker()
        except BaseException as error:  # `start` waits for every slot, broken or not
            self._broken = error
        self._ready.wait()
        while (item := slot.mailbox.get()) is not None:
            task, task_input = item
            tried = self._try(task, task_input)
            with self._lock:
                try:
                    self._finish(slot, task, tried)
                except BaseException as error:  # anything else would leave the stream hanging
                    self._break_down(error)
                    return

    def _try(self, task: Task, task_input: TaskInput) -> _Tried:
        """Attempt a task, again in the same slot if it fails."""
        code = self._jobs.code(task.job, task.stage)
        for attempt in range(MAX_ATTEMPTS):
            if attempt:
                task_input = dataclasses.replace(task_input, attempt=attempt)
            try:
                return _Tried(code.attempt(task_input), attempt + 1, failed=False)
            except BaseException as error:  # a task that exits the interpreter has failed, too
                self._record_failure(task, attempt, error)
        return _Tried(None, MAX_ATTEMPTS, failed=True)

    def _finish(self, slot: _Slot, task: Task, tried: _Tried) -> None:
        """Take note of the end of a task and go on (lock held)."""
        failed = tried.failed
        if not failed:
            try:
                self._results.store(task, tried.result)
            except TypeError as error:
                failed = True
                self._record_failure(task, tried.attempts - 1, error)
        now_s = self.time_s
        if not self._stopping:
            self._scheduler.fire_timers(now_s)
        for end in self._scheduler.task_ended(task, now_s, tried.attempts, failed):
            self._results.job_ended(end)
        if self._log is not None:
            self._log.append(self._log_row(task, tried.attempts, failed, now_s))
        self._idle.append(slot)
        self._advance()
        self._task_ended.notify_all()

    def _log_row(self, task: Task, attempts: int, failed: bool, end_s: float) -> Row:
        job = self._jobs.application.jobs[task.job]
        return (
            job.name,
            job.stages[task.stage].name,
            task.batch,
            task.records,
            task.busy,
            attempts,
            failed,
            task.start_s,
            end_s - task.start_s,
        )

    def _record_failure(self, task: Task, attempt: int, error: BaseException) -> None:
        job = self._jobs.application.jobs[task.job]
        stage = job.stages[task.stage].name
        self.failures.append(Failure(job.name, stage, task.batch, task.index, attempt, error))
        _logger.warning(
            "attempt %d of %d failed: job %s, stage %s, batch %d, task %d: %r",
            *(attempt + 1, MAX_ATTEMPTS, job.name, stage, task.batch, task.index, error),
        )

    def _break_down(self, error: BaseException) -> None:
        """Remember an error of the executor itself and wake up all that wait (lock held)."""
        self._broken = error
        self._timer_moved.notify_all()
        self._task_ended.notify_all()
