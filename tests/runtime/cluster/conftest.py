from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from runtime.cluster.runs import JobEnd, Task
from runtime.cluster.scheduler import Scheduler
from runtime.plan import Plan
from runtime.snapshot import Report, Snapshot


@dataclass(frozen=True)
class Attempted:
    """How a task goes: its time in the slot, how often it is tried, whether it fails for good."""

    duration_s: float
    attempts: int = 1
    failed: bool = False


@dataclass
class VirtualTime:
    """Drives a scheduler in virtual time, in the order of events that it documents.

    Attributes:
        scheduler: The scheduler.
        attempt: Says how a task goes.
        on_event: Called after every event with the scheduler, for invariants.
        starts: All tasks that started, in order.
        ends: (time, task) of all that ended.
        job_ends: (time, end) of all jobs.
    """

    scheduler: Scheduler
    attempt: Callable[[Task], Attempted]
    on_event: Callable[[Scheduler], None] = lambda scheduler: None
    now_s: float = 0.0
    starts: list[Task] = field(default_factory=list)
    ends: list[tuple[float, Task]] = field(default_factory=list)
    job_ends: list[tuple[float, JobEnd]] = field(default_factory=list)
    reports: list[Report] = field(default_factory=list)
    _heap: list[tuple[float, int, Task, Attempted]] = field(default_factory=list)

    def run(self, until_s: float) -> Snapshot:
        """Process all events up to a time and return the snapshot there."""
        self._start()
        while True:
            end_s = self._heap[0][0] if self._heap else float("inf")
            timer_s = self.scheduler.next_timer_s()
            if min(end_s, timer_s) > until_s:
                break
            if end_s <= timer_s:
                self.now_s, _, task, went = heapq.heappop(self._heap)
                self.ends.append((self.now_s, task))
                ended = self.scheduler.task_ended(task, self.now_s, went.attempts, went.failed)
                self.job_ends += [(self.now_s, end) for end in ended]
            else:
                self.now_s = timer_s
                self.scheduler.fire_timers(timer_s)
            self._start()
        self.now_s = until_s
        snapshot = self.scheduler.snapshot(until_s)
        self.reports += snapshot.reports
        return snapshot

    def apply(self, plan: Plan) -> None:
        """Put a plan in force now."""
        self.scheduler.apply(plan, self.now_s)

    def order(self) -> list[tuple[float, int, int, int, int]]:
        """Return (start, batch, job, stage, index) of every start."""
        return [(t.start_s, t.batch, t.job, t.stage, t.index) for t in self.starts]

    def _start(self) -> None:
        for task in self.scheduler.start_tasks(self.now_s):
            went = self.attempt(task)
            self.starts.append(task)
            heapq.heappush(self._heap, (self.now_s + went.duration_s, task.number, task, went))
        self.on_event(self.scheduler)


@pytest.fixture(scope="session")
def virtual_time() -> type[VirtualTime]:
    return VirtualTime


@pytest.fixture(scope="session")
def attempted() -> type[Attempted]:
    return Attempted
