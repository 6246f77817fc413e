"""Results of the tasks of open batches, on their way along the edges; state of stateful jobs."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from runtime.cluster.runs import JobEnd, Outcome, Task
from runtime.cluster.stream_jobs import StateUpdate, StreamJobs, TaskInput

_EMPTY: Mapping[str, tuple[Any, ...]] = MappingProxyType({})


class Results:
    """Holds what ended tasks returned for as long as their batch is open. Not thread-safe."""

    def __init__(self, jobs: StreamJobs) -> None:
        """Start with the initial states.

        Args:
            jobs: The application and its code.
        """
        self._application = jobs.application
        self._parents = [job.stage_parents() for job in jobs.application.jobs]
        self._committed: dict[int, Any] = {
            position: jobs.initial_state.get(job.name)
            for position, job in enumerate(jobs.application.jobs)
            if job.stateful
        }
        self._proposed: dict[tuple[int, int], Any] = {}
        self._outputs: dict[int, dict[tuple[int, int], list[Any]]] = {}

    def committed_state(self, job: str) -> Any:
        """Return the committed state of a stateful job.

        Raises:
            KeyError: No stateful job has this name.
        """
        names = [spec.name for spec in self._application.jobs]
        if job not in names or names.index(job) not in self._committed:
            stateful = [names[position] for position in self._committed]
            raise KeyError(f"no stateful job {job!r}; stateful jobs are {stateful}")
        return self._committed[names.index(job)]

    def task_input(self, task: Task) -> TaskInput:
        """Gather what a task that starts now is given."""
        batch = task.task_set.job.batch
        return TaskInput(
            batch=task.batch,
            first_record=batch.first_record,
            batch_records=batch.records,
            index=task.index,
            offset=task.offset,
            records=task.records,
            attempt=0,
            upstream=self._upstream(task),
            parents=self._parent_results(task),
            state=self._committed.get(task.job),
        )

    def store(self, task: Task, result: Any) -> None:
        """Keep the result of a task.

        Raises:
            TypeError: A `StateUpdate` from any other task than the only one of the last stage of
                a stateful job.
        """
        if isinstance(result, StateUpdate):
            last = len(self._application.jobs[task.job].stages) - 1
            if task.job not in self._committed or task.stage != last or task.task_set.tasks != 1:
                raise TypeError(
                    f"a task of job {self._application.jobs[task.job].name!r} returned a "
                    "StateUpdate; only the single task of the last stage of a stateful job may"
                )
            self._proposed[task.batch, task.job] = result.state
            result = result.output
        stages = self._outputs.setdefault(task.batch, {})
        outputs = stages.get((task.job, task.stage))
        if outputs is None:
            outputs = stages[task.job, task.stage] = [None] * task.task_set.tasks
        outputs[task.index] = result

    def job_ended(self, end: JobEnd) -> None:
        """Commit the state of a job that ended well; forget a batch with its last job."""
        proposed = self._proposed.pop((end.batch, end.job), None)
        if end.outcome is Outcome.SUCCEEDED and proposed is not None:
            self._committed[end.job] = proposed
        if end.last:
            self._outputs.pop(end.batch, None)

    def _upstream(self, task: Task) -> Mapping[str, tuple[Any, ...]]:
        predecessors = self._application.predecessors[task.job]
        if not predecessors:
            return _EMPTY
        jobs, stages = self._application.jobs, self._outputs[task.batch]
        return {jobs[p].name: tuple(stages[p, len(jobs[p].stages) - 1]) for p in predecessors}

    def _parent_results(self, task: Task) -> Mapping[str, tuple[Any, ...]]:
        parents = self._parents[task.job][task.stage]
        if not parents:
            return _EMPTY
        spec, stages = self._application.jobs[task.job].stages, self._outputs[task.batch]
        return {spec[p].name: tuple(stages[task.job, p]) for p in parents}
