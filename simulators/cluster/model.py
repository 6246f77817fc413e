"""An application and its profile flattened into the tables that the compiled engine reads."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from runtime.application import Application, Job
from simulators.cluster.profile import Profile, StageCost

LARGEST_TASK_COUNT = 2**31 - 1

# Indices are unsigned: numba would wrap signed ones around at every access.
JOB = np.dtype(
    [
        ("dependent", np.uint32),
        ("stateful", np.uint32),
        ("rank", np.int64),  # in the admission order of a batch: dependent first, then position
        ("n_predecessors", np.int32),
        ("n_stages", np.int32),
        ("first_successor", np.uint32),  # Model.successor[first:end], jobs that wait for this one
        ("end_successor", np.uint32),
        ("first_stage", np.uint32),
        ("end_stage", np.uint32),
    ],
    align=True,
)
STAGE = np.dtype(
    [
        ("wait_s", np.float64),
        ("fixed_s", np.float64),
        ("per_record_s", np.float64),
        ("failure_probability", np.float64),
        ("residual_size", np.float64),
        ("residual", np.uint32),  # where its table starts in Model.residual
        ("slowdown", np.uint32),  # where its table starts in Model.slowdown
        ("selectivity", np.float64),
        ("records_per_task", np.int64),
        ("max_tasks", np.int64),
        ("job", np.uint32),
        ("n_parents", np.int32),
        ("first_child", np.uint32),  # Model.child[first:end], stages that wait for this one
        ("end_child", np.uint32),
    ],
    align=True,
)


class Model(NamedTuple):
    """Static description of a cluster; stages of all jobs are numbered through.

    Attributes:
        job: JOB [n_jobs].
        stage: STAGE [n_stages].
        successor: uint32, positions of the jobs that wait for a job.
        child: uint32, numbers of the stages that wait for a stage.
        residual: float64, the residual tables of all stages.
        slowdown: float64 [n_stages * (slots + 1)], the slowdown tables of all stages.
        slots: Slots of the cluster.
        job_bits: A job of the batch at ring place p lives at place p << job_bits | position;
            powers of two spare the event loop its divisions.
        stage_bits: The same for stages.
    """

    job: Any
    stage: Any
    successor: NDArray[np.uint32]
    child: NDArray[np.uint32]
    residual: NDArray[np.float64]
    slowdown: NDArray[np.float64]
    slots: int
    job_bits: int
    stage_bits: int


def build_model(application: Application, profile: Profile, slots: int) -> Model:
    """Flatten an application and its profile.

    Args:
        application: The jobs of every batch.
        profile: Costs of all its stages.
        slots: Number of slots of the simulated cluster, at least 1.

    Raises:
        ValueError: `slots` below 1, a stage without costs or with too high a limit of tasks.
    """
    if slots < 1:
        raise ValueError(f"slots is {slots}; expected at least 1")
    profile.check_covers(application)
    costs = [
        profile.costs[job.name, stage.name] for job in application.jobs for stage in job.stages
    ]
    job_table, successor = _job_table(application)
    stage_table, child = _stage_table(application.jobs, costs)
    stage_table["slowdown"] = np.arange(len(costs)) * (slots + 1)
    return Model(
        job=job_table,
        stage=stage_table,
        successor=successor,
        child=child,
        residual=np.concatenate([cost.residual for cost in costs]).astype(np.float64),
        slowdown=np.concatenate([_slowdown_row(cost, slots) for cost in costs]),
        slots=slots,
        job_bits=(len(application.jobs) - 1).bit_length(),
        stage_bits=(len(costs) - 1).bit_length(),
    )


def _job_table(application: Application) -> tuple[NDArray[np.void], NDArray[np.uint32]]:
    jobs, dependent = application.jobs, application.dependent
    admission = sorted(range(len(jobs)), key=lambda j: (not dependent[j], j))
    successors = [
        [k for k, waits in enumerate(application.predecessors) if j in waits]
        for j in range(len(jobs))
    ]
    starts = np.cumsum([0] + [len(s) for s in successors])
    stages = np.cumsum([0] + [len(job.stages) for job in jobs])
    table = np.zeros(len(jobs), dtype=JOB)
    table["dependent"] = dependent
    table["stateful"] = [job.stateful for job in jobs]
    table["rank"] = [admission.index(j) for j in range(len(jobs))]
    table["n_predecessors"] = [len(waits) for waits in application.predecessors]
    table["n_stages"] = [len(job.stages) for job in jobs]
    table["first_successor"], table["end_successor"] = starts[:-1], starts[1:]
    table["first_stage"], table["end_stage"] = stages[:-1], stages[1:]
    return table, np.array([k for s in successors for k in s], dtype=np.uint32)


def _stage_table(
    jobs: tuple[Job, ...], costs: list[StageCost]
) -> tuple[NDArray[np.void], NDArray[np.uint32]]:
    table = np.zeros(len(costs), dtype=STAGE)
    children: list[int] = []
    first = 0
    for j, job in enumerate(jobs):
        parents = job.stage_parents()
        for s, stage in enumerate(job.stages):
            if stage.max_tasks > LARGEST_TASK_COUNT:
                raise ValueError(
                    f"stage {stage.name!r} of job {job.name!r}: max_tasks is {stage.max_tasks}; "
                    f"the engine counts up to {LARGEST_TASK_COUNT}"
                )
            own = [first + k for k, waits in enumerate(parents) if s in waits]
            row = table[first + s]
            row["job"], row["n_parents"] = j, len(parents[s])
            row["first_child"], row["end_child"] = len(children), len(children) + len(own)
            for name in ("selectivity", "records_per_task", "max_tasks"):
                row[name] = getattr(stage, name)
            children.extend(own)
        first += len(job.stages)
    for name in ("wait_s", "fixed_s", "per_record_s", "failure_probability"):
        table[name] = [getattr(cost, name) for cost in costs]
    sizes = [len(cost.residual) for cost in costs]
    table["residual"] = np.cumsum([0, *sizes])[:-1]
    table["residual_size"] = sizes
    return table, np.array(children, dtype=np.uint32)


def _slowdown_row(cost: StageCost, slots: int) -> NDArray[np.float64]:
    """Cut or extend (by its last value) a slowdown table to slots + 1 entries."""
    missing = max(slots + 1 - len(cost.slowdown), 0)
    return np.concatenate([cost.slowdown[: slots + 1], np.full(missing, cost.slowdown[-1])])
