"""What the oracle of stream clusters keeps of batches, jobs, stages and tasks under way."""

from __future__ import annotations

from dataclasses import dataclass, field

from runtime.application import Job, Stage
from simulators.cluster.profile import StageCost


@dataclass
class StageRun:
    """A stage of one batch."""

    number: int  # over all stages of the application
    stage: Stage
    cost: StageCost
    job: JobRun
    waits_for: set[int]
    records: int = 0
    tasks: int = 0
    started: int = 0
    running: int = 0

    @property
    def unstarted(self) -> int:
        """Tasks that could start but have no slot."""
        return self.tasks - self.started


@dataclass(eq=False)
class JobRun:
    """A job of one batch."""

    position: int
    job: Job
    dependent: bool
    batch: BatchRun
    waits_for: list[JobRun] = field(default_factory=list)
    stages: list[StageRun] = field(default_factory=list)
    phase: str = "waiting"  # then ready, admitted, ended
    failed: bool = False
    admission: int = -1

    @property
    def running_tasks(self) -> int:
        """Tasks of the job that occupy a slot."""
        return sum(stage.running for stage in self.stages)


@dataclass(eq=False)
class BatchRun:
    """A batch that has not ended."""

    number: int
    version: int
    records: int
    first_record: int
    arrivals_s: tuple[float, float, float]  # of the first record, mean, of the last record
    cut_s: float
    jobs: list[JobRun] = field(default_factory=list)
    start_s: float | None = None
    tasks: int = 0
    busy_s: list[float] = field(default_factory=lambda: [0.0, 0.0])


@dataclass(frozen=True)
class TaskLog:
    """One task as it ran."""

    batch: int
    job: int
    stage: int
    records: int
    busy: int
    start_s: float
    end_s: float
