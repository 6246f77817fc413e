"""Who goes next: ready jobs to tokens, runnable task sets to slots."""

from __future__ import annotations

import bisect
import heapq
from collections.abc import Sequence

from runtime.cluster.runs import JobRun, TaskSet
from runtime.plan import Plan, Policy, Pools

INDEPENDENT, DEPENDENT = 0, 1
"""The two pools, and the positions of all pairs that are kept per pool."""


class ReadyJobs:
    """Jobs that only lack a token, in admission order: batch, dependent first, position."""

    def __init__(self) -> None:
        self._heaps: tuple[list[tuple[tuple[int, int, int], JobRun]], ...] = ([], [])

    @property
    def counts(self) -> tuple[int, int]:
        """Numbers of ready independent and dependent jobs."""
        return len(self._heaps[INDEPENDENT]), len(self._heaps[DEPENDENT])

    def add(self, job: JobRun) -> None:
        """Queue a job."""
        order = (job.batch.number, 1 - job.pool, job.position)
        heapq.heappush(self._heaps[job.pool], (order, job))

    def next_job(self, plan: Plan, running: Sequence[int]) -> JobRun | None:
        """Take the job that gets the next token; None if no token is free for a ready job.

        Args:
            plan: The plan in force.
            running: Numbers of independent and dependent jobs that hold a token.
        """
        if plan.per_pool_parallelism:
            open_pools = [p for p in (INDEPENDENT, DEPENDENT) if running[p] < plan.parallelism]
        elif sum(running) < plan.parallelism:
            open_pools = [INDEPENDENT, DEPENDENT]
        else:
            return None
        heaps = [self._heaps[p] for p in open_pools if self._heaps[p]]
        if not heaps:
            return None
        return heapq.heappop(min(heaps, key=lambda heap: heap[0][0]))[1]


class RunnableTaskSets:
    """Stages with unstarted tasks whose parents have ended, per pool in FIFO order."""

    def __init__(self) -> None:
        self._pools: tuple[list[TaskSet], list[TaskSet]] = ([], [])

    @property
    def queued_tasks(self) -> tuple[int, int]:
        """Runnable tasks without a slot, independent and dependent."""
        return (
            sum(t.unstarted for t in self._pools[INDEPENDENT]),
            sum(t.unstarted for t in self._pools[DEPENDENT]),
        )

    def add(self, task_set: TaskSet) -> None:
        """Queue a task set in its place."""
        bisect.insort(self._pools[task_set.job.pool], task_set, key=_fifo)

    def remove(self, task_set: TaskSet) -> None:
        """Take a task set out if it is queued."""
        pool = self._pools[task_set.job.pool]
        if task_set in pool:
            pool.remove(task_set)

    def next_task_set(
        self, plan: Plan, busy: Sequence[int], targets: Sequence[int]
    ) -> TaskSet | None:
        """Return the task set that gets the next free slot; None if no pool may use it.

        Args:
            plan: The plan in force.
            busy: Busy slots of each pool.
            targets: Slots of each hard pool.
        """
        if plan.pools is Pools.SINGLE:
            return _pick([*self._pools[INDEPENDENT], *self._pools[DEPENDENT]], plan, INDEPENDENT)
        able = [
            p
            for p in (INDEPENDENT, DEPENDENT)
            if self._pools[p] and (plan.pools is Pools.SOFT or busy[p] < targets[p])
        ]
        if not able:
            return None
        if len(able) == 2:
            # Hard pools that may both start a task leave room for both: the order is free, save
            # where one slot is shared in time.
            pool = _soft_pool(plan.share, busy) if plan.pools is Pools.SOFT else DEPENDENT
        else:
            pool = able[0]
        return _pick(self._pools[pool], plan, pool)


def _fifo(task_set: TaskSet) -> tuple[int, int]:
    return task_set.order


def _fair(task_set: TaskSet) -> tuple[int, tuple[int, int]]:
    return task_set.running, task_set.order


def _pick(task_sets: list[TaskSet], plan: Plan, pool: int) -> TaskSet | None:
    """Return the task set that a policy puts first."""
    if not task_sets:
        return None
    policy = plan.dependent_policy if pool == DEPENDENT else plan.independent_policy
    return min(task_sets, key=_fair if policy is Policy.FAIR else _fifo)


def _soft_pool(share: float, busy: Sequence[int]) -> int:
    """Return the pool that is further below its weight; dependent at a tie."""
    if share == 0.0:
        return DEPENDENT
    if share == 1.0:
        return INDEPENDENT
    below = busy[DEPENDENT] * share <= busy[INDEPENDENT] * (1.0 - share)
    return DEPENDENT if below else INDEPENDENT
