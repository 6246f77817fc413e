"""Task times on this machine: stages by themselves with slots filled, and whole streams.

`measure_stages` covers sizes and busy slots evenly; `measure_run` logs the tasks of a real stream
and is what a simulation should be fitted to and compared with. Both give the table of
`runtime.cluster.task_log`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runtime.cluster.executor import LocalExecutor
from runtime.cluster.results import Results
from runtime.cluster.scheduler import Scheduler
from runtime.cluster.source import Source
from runtime.cluster.stream_jobs import StageCode, StreamJobs, TaskInput
from runtime.cluster.task_log import Row, task_time_table
from runtime.plan import Plan
from runtime.snapshot import Report, Snapshot

Progress = Callable[[float, str], None]
"""Called with the done fraction, from 0 to 1, and what is being done."""

BATCH_SIZES = (16, 64, 256, 1024)
LEAST_LEVEL_S = 0.2


def _silent(fraction: float, what: str) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Sample:
    """A task that can be run by itself.

    Attributes:
        job: Name of the job.
        stage: Name of the stage.
        code: What it does.
        task: Its real input, results of other jobs included.
    """

    job: str
    stage: str
    code: StageCode
    task: TaskInput


def declared_waits(jobs: StreamJobs) -> dict[tuple[str, str], float]:
    """Return the declared wait of every stage, seconds, by (job, stage)."""
    return {
        (job.name, stage.name): jobs.code(j, s).wait_s
        for j, job in enumerate(jobs.application.jobs)
        for s, stage in enumerate(job.stages)
    }


def sample_tasks(jobs: StreamJobs, batch_records: int) -> list[Sample]:
    """Run one batch in this thread, without waits, and return the first task of every stage.

    Args:
        jobs: The application and its code.
        batch_records: Records in the batch, at least 1.
    """
    source = Source(np.array([batch_records]), tick_s=1.0)
    plan = Plan(parallelism=len(jobs.application.jobs), batch_interval_s=1.0)
    scheduler = Scheduler(jobs.application, source, 1, plan)
    results = Results(jobs)
    samples = []
    scheduler.fire_timers(1.0)
    while started := scheduler.start_tasks(1.0):
        (task,) = started
        task_input, code = results.task_input(task), jobs.code(task.job, task.stage)
        if task.index == 0:
            job = jobs.application.jobs[task.job]
            samples.append(Sample(job.name, job.stages[task.stage].name, code, task_input))
        results.store(task, code.compute(task_input))
        for end in scheduler.task_ended(task, 1.0):
            results.job_ended(end)
    return samples


def measure_stages(
    jobs: StreamJobs,
    slots: int,
    budget_s: float,
    seed: int = 0,
    progress: Progress = _silent,
) -> NDArray[np.void]:
    """Measure every stage at several sizes with 1, 2, ... and all slots filled.

    With k slots filled, k threads run tasks of the whole application in random order, so the
    others are the background of each.

    Args:
        jobs: The application and its code.
        slots: Number of slots.
        budget_s: Time to spend, seconds; the fewer slots are filled, the longer.
        seed: Seed of the order of tasks.
        progress: Told how far it is.

    Returns:
        Table of task times, a structured array [n]; `batch` is -1.

    Raises:
        ValueError: The budget leaves less than `LEAST_LEVEL_S` for a number of busy slots.
    """
    weights = np.arange(1, slots + 1) ** -0.5
    level_s = budget_s * weights / weights.sum()
    if level_s.min() < LEAST_LEVEL_S:
        raise ValueError(
            f"budget_s is {budget_s}; with {slots} slots expected at least "
            f"{LEAST_LEVEL_S * weights.sum() / weights.min():.1f}"
        )
    samples = _distinct_samples(jobs)
    rows: list[Row] = []
    for busy, seconds in enumerate(level_s.tolist(), start=1):
        progress(float(level_s[: busy - 1].sum()) / budget_s, f"{busy} of {slots} slots filled")
        rows += _measure_level(jobs, samples, busy, seconds, seed)
    progress(1.0, "done")
    return task_time_table(jobs.application, rows)


def _distinct_samples(jobs: StreamJobs) -> list[Sample]:
    """Return a task of every stage in every size that it takes for `BATCH_SIZES`."""
    distinct: dict[tuple[str, str, int], Sample] = {}
    for records in BATCH_SIZES:
        for sample in sample_tasks(jobs, records):
            distinct.setdefault((sample.job, sample.stage, sample.task.records), sample)
    return list(distinct.values())


def _measure_level(
    jobs: StreamJobs, samples: list[Sample], busy: int, seconds: float, seed: int
) -> list[Row]:
    """Keep `busy` threads running tasks for some seconds and return their times."""
    rows: list[Row] = []
    start = threading.Barrier(busy)

    def work(slot: int) -> None:
        jobs.prepare_worker()
        order = _shuffled(samples, np.random.default_rng([seed, busy, slot]))
        start.wait()
        until_s = time.monotonic() + seconds
        own: list[Row] = []
        while (start_s := time.monotonic()) < until_s:
            sample = next(order)
            sample.code.attempt(sample.task)
            took_s = time.monotonic() - start_s
            size = sample.task.records
            own.append((sample.job, sample.stage, -1, size, busy, 1, False, start_s, took_s))
        rows.extend(own)

    threads = [threading.Thread(target=work, args=(slot,), daemon=True) for slot in range(busy)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return rows


def _shuffled(samples: list[Sample], rng: np.random.Generator) -> Iterator[Sample]:
    """Yield the samples in random order again and again."""
    while True:
        for i in rng.permutation(len(samples)):
            yield samples[i]


@dataclass(frozen=True)
class MeasuredRun:
    """A real stream under a constant plan.

    Attributes:
        plan: The plan.
        slots: Worker slots.
        counts: int64 [n_ticks], records that arrived per tick.
        tick_s: Length of a tick, seconds.
        reports: Of all batches.
        last: Snapshot over the whole run, taken when all records had left.
        task_times: Table of task times, a structured array [n].
        cpu_s: Processor time of this process in the run, seconds.
    """

    plan: Plan
    slots: int
    counts: NDArray[np.int64]
    tick_s: float
    reports: tuple[Report, ...]
    last: Snapshot
    task_times: NDArray[np.void]
    cpu_s: float


def measure_run(
    jobs: StreamJobs,
    slots: int,
    plan: Plan,
    counts: NDArray[np.int64],
    tick_s: float,
    patience_s: float = 30.0,
) -> MeasuredRun:
    """Run a stream to its end and log all task times.

    Args:
        jobs: The application and its code.
        slots: Number of worker slots.
        plan: The plan.
        counts: int64 [n_ticks], records per tick.
        tick_s: Length of a tick, seconds.
        patience_s: How long after the last arrival the last batch may end, seconds.

    Raises:
        TimeoutError: The stream was not finished by then: it arrives faster than it is processed.
    """
    source = Source(counts, tick_s)
    horizon_s = source.horizon_s
    executor = LocalExecutor(jobs, source, plan, slots)
    cpu_s = time.process_time()
    executor.start(log_tasks=True)
    with executor:
        if not executor.wait(horizon_s + patience_s):
            waiting = executor.snapshot()
            raise TimeoutError(
                f"{waiting['records_pending'] + waiting['records_uncut']:.0f} of "
                f"{source.records} records were left {patience_s} s after the last arrival; "
                "lower the rate or raise the parallelism"
            )
        last = executor.snapshot()
    return MeasuredRun(
        plan=plan,
        slots=slots,
        counts=counts,
        tick_s=tick_s,
        reports=executor.reports,
        last=last,
        task_times=executor.task_log(),
        cpu_s=time.process_time() - cpu_s,
    )


def measure_runs(
    jobs: StreamJobs,
    slots: int,
    settings: Sequence[tuple[Plan, float]],
    seconds: float,
    seed: int = 0,
    progress: Progress = _silent,
) -> list[MeasuredRun]:
    """Measure Poisson streams under several plans, one after the other.

    Args:
        jobs: The application and its code.
        slots: Number of worker slots.
        settings: Plan and mean arrival rate, records per second, of each run.
        seconds: Length of each stream.
        seed: Seed of the arrivals.
        progress: Told how far it is.

    Raises:
        TimeoutError: A rate is more than its plan can process.
    """
    tick_s = 0.05
    runs = []
    for i, (plan, rate) in enumerate(settings):
        progress(i / len(settings), f"{rate:.0f} records/s, run {i + 1} of {len(settings)}")
        rng = np.random.default_rng([seed, i])
        counts = rng.poisson(rate * tick_s, size=round(seconds / tick_s)).astype(np.int64)
        runs.append(measure_run(jobs, slots, plan, counts, tick_s))
    progress(1.0, "done")
    return runs


def varied_settings(rate_per_s: float, slots: int) -> list[tuple[Plan, float]]:
    """Return plans and rates whose tasks differ in size and meet few to many busy slots.

    Args:
        rate_per_s: About the rate that the slots can sustain, records per second.
        slots: Number of worker slots.
    """
    shapes = (
        (0.05, 0.3, 1),
        (0.10, 0.5, 2),
        (0.20, 0.5, 4),
        (0.35, 1.0, 3),
        (0.50, 1.0, slots),
        (0.65, 2.0, slots),
    )
    return [
        (Plan(batch_interval_s=interval_s, parallelism=parallelism), part * rate_per_s)
        for part, interval_s, parallelism in shapes
    ]
