"""What the tasks of an application really do: one callable per stage, and the state of jobs.

An application of one's own:

    jobs = StreamJobs(
        Application("count", (Job("words", (Stage("main"),)),)),
        {("words", "main"): StageCode(lambda task: len(store.read(task.start, task.records)))},
    )
"""

from __future__ import annotations

import difflib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from runtime.application import Application


@dataclass(frozen=True, slots=True)
class TaskInput:
    """What one attempt of a task is given. Nothing in it may be changed in place.

    Attributes:
        batch: Number of the batch.
        first_record: Number of the batch's first record since the start of the stream.
        batch_records: Records in the batch.
        index: Place of the task in its stage.
        offset: First record of the task, counted from 0 in the stage.
        records: Records of the task, 0 or more.
        attempt: 0 at first, 1 when it is tried again.
        upstream: For each job that this one waits for, the results of the tasks of its last
            stage, in the order of the tasks.
        parents: For each parent stage in the same job, the results of its tasks, in order.
        state: What the last batch of a stateful job committed; None in other jobs.
    """

    batch: int
    first_record: int
    batch_records: int
    index: int
    offset: int
    records: int
    attempt: int
    upstream: Mapping[str, tuple[Any, ...]]
    parents: Mapping[str, tuple[Any, ...]]
    state: Any

    @property
    def start(self) -> int:
        """Number of the task's first record since the start of the stream."""
        return self.first_record + self.offset


@dataclass(frozen=True, slots=True)
class StateUpdate:
    """Result of the last stage of a stateful job: its output, and the state to commit.

    The state is committed when the job ends well, so it must be a new value, not the old one
    changed in place: a task may be tried again, and its job may fail.
    """

    output: Any
    state: Any


@dataclass(frozen=True, slots=True)
class StageCode:
    """What the tasks of a stage do.

    Attributes:
        compute: Called in a worker slot; its return value is the result of the task. An exception
            fails the attempt.
        wait_s: Declared wait of every attempt before it computes (a read from a store), seconds.
    """

    compute: Callable[[TaskInput], Any]
    wait_s: float = 0.0

    def __post_init__(self) -> None:
        """Refuse an impossible wait.

        Raises:
            ValueError: `wait_s` is negative or not finite.
        """
        if not (math.isfinite(self.wait_s) and self.wait_s >= 0.0):
            raise ValueError(f"wait_s is {self.wait_s}; expected finite seconds >= 0")

    def attempt(self, task: TaskInput) -> Any:
        """Wait, compute and return the result."""
        if self.wait_s > 0.0:
            time.sleep(self.wait_s)
        return self.compute(task)


def _nothing() -> None:
    pass


class StreamJobs:
    """An application together with the code of its stages.

    Attributes:
        application: The structure.
        initial_state: State of the stateful jobs before the first batch, by name.
        prepare_worker: Called once in every worker before its first task.
    """

    def __init__(
        self,
        application: Application,
        code: Mapping[tuple[str, str], StageCode],
        initial_state: Mapping[str, Any] | None = None,
        prepare_worker: Callable[[], None] = _nothing,
    ) -> None:
        """Join structure and code.

        Args:
            application: The structure.
            code: What each stage does, by (job, stage).
            initial_state: State of stateful jobs before the first batch, by job name. The last
                stage of such a job is a single task that returns a `StateUpdate`.
            prepare_worker: Called once in every worker before its first task.

        Raises:
            ValueError: A stage without code, code without a stage, or a state for a job that
                cannot have one.
        """
        self.application = application
        self.initial_state = MappingProxyType(dict(initial_state or {}))
        self.prepare_worker = prepare_worker
        names = {(job.name, stage.name) for job in application.jobs for stage in job.stages}
        _refuse_strangers(application.name, names, set(code))
        self._code = [
            [code[job.name, stage.name] for stage in job.stages] for job in application.jobs
        ]
        by_name = {job.name: job for job in application.jobs}
        for name in self.initial_state:
            job = by_name.get(name)
            if job is None or not job.stateful or job.stages[-1].max_tasks != 1:
                raise ValueError(
                    f"job {name!r} has an initial state; expected a stateful job of application "
                    f"{application.name!r} whose last stage has max_tasks 1"
                )

    def code(self, job: int, stage: int) -> StageCode:
        """Return the code of a stage by the positions of job and stage."""
        return self._code[job][stage]


def _refuse_strangers(
    application: str, expected: set[tuple[str, str]], given: set[tuple[str, str]]
) -> None:
    for job, stage in sorted(expected - given):
        near = difflib.get_close_matches(f"{job}/{stage}", [f"{j}/{s}" for j, s in given], n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"stage {stage!r} of job {job!r} in application {application!r} has no code{hint}"
        )
    for job, stage in sorted(given - expected):
        near = difflib.get_close_matches(f"{job}/{stage}", [f"{j}/{s}" for j, s in expected], n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"there is code for {job}/{stage}, which application {application!r} lacks{hint}"
        )
