"""What a cluster can do at best, by arithmetic: work, loads, makespan bounds, capacity.

All figures are for mean task times (residual 1). Work is in slot-seconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from runtime.application import Application, Job, Stage, task_slice
from simulators.cluster.profile import Profile, StageCost

# Without a cost per record no batch is too large; this many records count as no limit.
_LARGEST_BATCH = 1 << 40


class ClassWork(NamedTuple):
    """A quantity per class of jobs."""

    independent: float
    dependent: float

    @property
    def total(self) -> float:
        """Sum over both classes."""
        return self.independent + self.dependent


class MakespanBounds(NamedTuple):
    """Time from the cut of a lone batch to the end of its last job, seconds."""

    lower_s: float
    upper_s: float


def batch_work(
    application: Application, profile: Profile, batch_records: int, busy: int = 1
) -> ClassWork:
    """Return the work that one batch offers, in slot-seconds.

    Args:
        application: The jobs of every batch.
        profile: Costs of all its stages.
        batch_records: Records of the batch, at least 1.
        busy: Busy slots at which tasks start (their slowdown).

    Raises:
        ValueError: No records, no busy slot, or a stage without costs.
    """
    _check(application, profile, batch_records, busy)
    work = [0.0, 0.0]
    for job, dependent in zip(application.jobs, application.dependent, strict=True):
        for stage in job.stages:
            cost = profile.costs[job.name, stage.name]
            work[dependent] += _stage_work_s(stage, cost, batch_records, busy)
    return ClassWork(*work)


def work_per_record(
    application: Application, profile: Profile, batch_records: int, busy: int = 1
) -> ClassWork:
    """Return the work per record at a batch size, in slot-seconds; arguments of `batch_work`.

    Larger batches share the costs per task among more records, so this falls with the size.
    """
    work = batch_work(application, profile, batch_records, busy)
    return ClassWork(work.independent / batch_records, work.dependent / batch_records)


def pool_load(work_s: float, slots: int, batch_interval_s: float) -> float:
    """Return the load of a pool: offered work over what its slots can do in an interval.

    Args:
        work_s: Work of one batch in the pool, slot-seconds.
        slots: Slots of the pool; none with work is an infinite load.
        batch_interval_s: Time between two batches, above 0.
    """
    if slots == 0:
        return math.inf if work_s > 0.0 else 0.0
    return work_s / (slots * batch_interval_s)


def balanced_share(work: ClassWork) -> float:
    """Return the share at which both pools have the same load: W_i / (W_i + W_d).

    Raises:
        ValueError: There is no work.
    """
    if work.total <= 0.0:
        raise ValueError(f"the work is {work}; expected some above 0")
    return work.independent / work.total


def critical_path_s(
    application: Application, profile: Profile, batch_records: int, busy: int = 1
) -> float:
    """Return the length of a batch's longest chain of tasks, seconds.

    No number of slots makes a batch faster. Arguments of `batch_work`.
    """
    _check(application, profile, batch_records, busy)
    ends = [0.0] * len(application.jobs)
    unknown = set(range(len(application.jobs)))
    while unknown:
        j = next(j for j in sorted(unknown) if unknown.isdisjoint(application.predecessors[j]))
        before = max((ends[p] for p in application.predecessors[j]), default=0.0)
        ends[j] = before + _job_path_s(application.jobs[j], profile, batch_records, busy)
        unknown.remove(j)
    return max(ends)


def makespan_bounds(
    application: Application, profile: Profile, batch_records: int, slots: int
) -> MakespanBounds:
    """Bound the makespan of a lone batch in a single pool without a binding parallelism.

    Lower: max(W/c, critical path) with the smallest slowdown that up to c busy slots have. Upper:
    W/c + (1 - 1/c) * critical path with the largest one (Graham 1966, "Bounds for certain
    multiprocessing anomalies"), for any order that leaves no slot idle while a task is runnable.

    Args:
        application: The jobs of every batch.
        profile: Costs of all its stages.
        batch_records: Records of the batch, at least 1.
        slots: Number of slots c, at least 1.
    """
    _check(application, profile, batch_records, slots)
    low, high = _with_slowdown(profile, slots, min), _with_slowdown(profile, slots, max)
    work_s = batch_work(application, low, batch_records).total
    lower_s = max(work_s / slots, critical_path_s(application, low, batch_records))
    work_s = batch_work(application, high, batch_records).total
    path_s = critical_path_s(application, high, batch_records)
    return MakespanBounds(lower_s, work_s / slots + (1.0 - 1.0 / slots) * path_s)


def pooled_lower_bound_s(work: ClassWork, slots: tuple[int, int], path_s: float) -> float:
    """Return the least makespan in hard pools: max(W_i/c_i, W_d/c_d, critical path), seconds.

    Args:
        work: Work of the batch.
        slots: Slots of the independent and of the dependent pool.
        path_s: Critical path of the batch.
    """
    times = [w / c if c else math.inf for w, c in zip(work, slots, strict=True) if w > 0.0]
    return max([path_s, *times])


def capacity_per_s(
    application: Application, profile: Profile, slots: int, batch_interval_s: float
) -> float:
    """Return the highest rate that the slots can keep up with, records per second.

    The largest batch of one interval whose work fits into the slots over an interval, at the best
    number of busy slots, and whose stateful jobs (one batch after the other) each fit into an
    interval on their own, divided by the interval. No plan with this interval can sustain more in
    the mean; a limited parallelism or hard pools sustain less.

    Args:
        application: The jobs of every batch.
        profile: Costs of all its stages.
        slots: Number of slots, at least 1.
        batch_interval_s: Time between two cuts, above 0.

    Returns:
        Records per second; 0 if not even a batch of one record fits, infinite if no stage costs
        anything per record.
    """
    _check(application, profile, 1, slots)
    if not (math.isfinite(batch_interval_s) and batch_interval_s > 0.0):
        raise ValueError(f"batch_interval_s is {batch_interval_s}; expected finite seconds > 0")
    fastest = _with_slowdown(profile, slots, min)

    def fits(records: int) -> bool:
        stateful = (job for job in application.jobs if job.stateful)
        if any(_job_path_s(job, fastest, records, 1) > batch_interval_s for job in stateful):
            return False
        return any(
            batch_work(application, profile, records, busy).total <= busy * batch_interval_s
            for busy in range(slots, 0, -1)
        )

    enough, too_many = 0, 1
    while fits(too_many):
        enough, too_many = too_many, 2 * too_many
        if too_many > _LARGEST_BATCH:
            return math.inf
    while too_many - enough > 1:
        middle = (enough + too_many) // 2
        enough, too_many = (middle, too_many) if fits(middle) else (enough, middle)
    return enough / batch_interval_s


def _check(application: Application, profile: Profile, batch_records: int, busy: int) -> None:
    if batch_records < 1 or busy < 1:
        raise ValueError(
            f"batch_records is {batch_records}, slots or busy slots {busy}; expected at least 1"
        )
    profile.check_covers(application)


def _stage_work_s(stage: Stage, cost: StageCost, batch_records: int, busy: int) -> float:
    # Task times are affine in their records, so only the total counts.
    tasks = stage.task_count(batch_records)
    return tasks * cost.mean_task_s(stage.stage_records(batch_records) / tasks, busy)


def _job_path_s(job: Job, profile: Profile, batch_records: int, busy: int) -> float:
    """Return the longest chain of (largest) tasks through a job's stages, seconds."""
    ends: list[float] = []
    for stage, parents in zip(job.stages, job.stage_parents(), strict=True):
        tasks = stage.task_count(batch_records)
        _, largest = task_slice(stage.stage_records(batch_records), tasks, 0)
        own_s = profile.costs[job.name, stage.name].mean_task_s(largest, busy)
        ends.append(max((ends[p] for p in parents), default=0.0) + own_s)
    return max(ends)


def _with_slowdown(
    profile: Profile, slots: int, choose: Callable[[NDArray[np.float64]], float]
) -> Profile:
    """Return the profile with one slowdown per stage, chosen from those of 1 to `slots` busy."""
    costs = {
        key: replace(cost, slowdown=np.full(2, choose(cost.slowdown[1 : slots + 1])))
        for key, cost in profile.costs.items()
    }
    return replace(profile, costs=costs)
