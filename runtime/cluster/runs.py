"""The parts of a batch in execution: its jobs, their task sets, the tasks handed to slots."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto

from runtime.application import Job, task_slice


class Outcome(Enum):
    """How a job ended."""

    SUCCEEDED = auto()
    FAILED = auto()
    CANCELLED = auto()


@dataclass(slots=True, eq=False)
class BatchRun:
    """A batch that has been cut and has not ended."""

    number: int
    plan_version: int
    records: int
    first_record: int
    first_arrival_s: float
    mean_arrival_s: float
    last_arrival_s: float
    cut_s: float
    jobs: list[JobRun] = field(default_factory=list, repr=False)
    jobs_left: int = 0
    start_s: float | None = None
    tasks: int = 0
    busy_s: list[float] = field(default_factory=lambda: [0.0, 0.0])
    failed_jobs: int = 0


@dataclass(slots=True, eq=False)
class JobRun:
    """A job of one batch.

    Attributes:
        batch: The batch.
        position: Its place in the application.
        pool: 0 independent, 1 dependent.
        waits: Number of jobs (of this batch, and of the one before if stateful) it waits for.
        upstream_failed: Whether a predecessor of this batch failed or was cancelled.
        admission: Number of its admission; None before.
        outcome: How it ended; None before.
        task_sets: Its stages.
        stages_left: Stages that have not ended.
        running: Running tasks of all its stages.
        failing: Whether a task failed twice: nothing more of the job is started.
        end_s: When it ended; NaN before, and for good if it is cancelled.
    """

    batch: BatchRun
    position: int
    pool: int
    waits: int
    upstream_failed: bool = False
    admission: int | None = None
    outcome: Outcome | None = None
    task_sets: list[TaskSet] = field(default_factory=list, repr=False)
    stages_left: int = 0
    running: int = 0
    failing: bool = False
    end_s: float = float("nan")


@dataclass(slots=True, eq=False)
class TaskSet:
    """The tasks of one stage of a job of one batch.

    Attributes:
        job: The job.
        stage: Position of the stage in the job.
        order: (admission, stage), its place in a FIFO queue.
        waits: Number of parent stages that have not ended.
        records: Records that reach the stage.
        tasks: Number of its tasks.
        next_task: Index of the task that starts next.
        running: Its running tasks.
    """

    job: JobRun
    stage: int
    order: tuple[int, int]
    waits: int
    records: int
    tasks: int
    next_task: int = 0
    running: int = 0

    @property
    def unstarted(self) -> int:
        """Number of tasks that have not started."""
        return self.tasks - self.next_task

    @property
    def ended(self) -> bool:
        """Whether all its tasks have ended."""
        return self.running == 0 and self.next_task == self.tasks


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """A task that was given a slot.

    Attributes:
        number: Its place in the order of all starts.
        batch: Number of the batch.
        job: Position of the job in the application.
        stage: Position of the stage in the job.
        index: Its place among the tasks of the stage.
        offset: First record it takes, counted from 0 in the stage.
        records: How many records it takes.
        busy: Busy slots at its start, its own included.
        start_s: When it started.
        task_set: The stage in execution; belongs to the scheduler.
    """

    number: int
    batch: int
    job: int
    stage: int
    index: int
    offset: int
    records: int
    busy: int
    start_s: float
    task_set: TaskSet = field(repr=False)

    @property
    def first_record(self) -> int:
        """Number of its first record since the start of the stream (the key of its noise)."""
        return self.task_set.job.batch.first_record + self.offset


@dataclass(frozen=True, slots=True)
class JobEnd:
    """A job that ended.

    Attributes:
        batch: Number of the batch.
        job: Position of the job in the application.
        outcome: How it ended.
        last: Whether the batch ended with it.
    """

    batch: int
    job: int
    outcome: Outcome
    last: bool


def create_task_sets(spec: Job, job: JobRun) -> list[TaskSet]:
    """Build the task sets of an admitted job, in the order of its stages.

    Raises:
        ValueError: The job has not been admitted.
    """
    if job.admission is None:
        raise ValueError(f"job {spec.name!r} has not been admitted")
    return [
        TaskSet(
            job=job,
            stage=position,
            order=(job.admission, position),
            waits=len(parents),
            records=stage.stage_records(job.batch.records),
            tasks=stage.task_count(job.batch.records),
        )
        for position, (stage, parents) in enumerate(
            zip(spec.stages, spec.stage_parents(), strict=True)
        )
    ]


def next_task(task_set: TaskSet, number: int, busy: int, time_s: float) -> Task:
    """Take the next task out of a task set (which must have one)."""
    index = task_set.next_task
    offset, records = task_slice(task_set.records, task_set.tasks, index)
    task_set.next_task += 1
    task_set.running += 1
    task_set.job.running += 1
    return Task(
        number=number,
        batch=task_set.job.batch.number,
        job=task_set.job.position,
        stage=task_set.stage,
        index=index,
        offset=offset,
        records=records,
        busy=busy,
        start_s=time_s,
        task_set=task_set,
    )
