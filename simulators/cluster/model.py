"""An application and its profile flattened into the arrays that the compiled engine reads."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from runtime.application import Application, Job
from simulators.cluster.profile import Profile, StageCost

# Columns of Model.job.
DEPENDENT, STATEFUL, N_PREDECESSORS, RANK, SUCCESSORS, SUCCESSORS_END, STAGES, STAGES_END = range(8)
# Columns of Model.stage.
(
    JOB,
    RECORDS_PER_TASK,
    MAX_TASKS,
    N_PARENTS,
    CHILDREN,
    CHILDREN_END,
    RESIDUAL,
    RESIDUAL_SIZE,
) = range(8)
# Columns of Model.cost.
WAIT, FIXED, PER_RECORD, SELECTIVITY, FAILURE = range(5)


class Model(NamedTuple):
    """Static description of a cluster; stages of all jobs are numbered through.

    Attributes:
        job: int64 [n_jobs, 8], columns above. RANK is the position in the admission order of one
            batch: dependent jobs first, then by position.
        successor: int64, positions of the jobs that wait for a job, sliced by job columns.
        stage: int64 [n_stages, 8], columns above.
        child: int64, numbers of the stages that wait for a stage, sliced by stage columns.
        cost: float64 [n_stages, 5], columns above.
        residual: float64, all residual tables, sliced by stage columns.
        slowdown: float64 [n_stages, slots + 1].
        job_bits: A job of the batch at ring place p lives at place p << job_bits | position;
            powers of two spare the event loop its divisions.
        stage_bits: The same for stages.
    """

    job: NDArray[np.int64]
    successor: NDArray[np.int64]
    stage: NDArray[np.int64]
    child: NDArray[np.int64]
    cost: NDArray[np.float64]
    residual: NDArray[np.float64]
    slowdown: NDArray[np.float64]
    job_bits: int
    stage_bits: int


def build_model(application: Application, profile: Profile, slots: int) -> Model:
    """Flatten an application and its profile.

    Args:
        application: The jobs of every batch.
        profile: Costs of all its stages.
        slots: Number of slots of the simulated cluster, at least 1.

    Raises:
        ValueError: `slots` below 1, or a stage without costs.
    """
    if slots < 1:
        raise ValueError(f"slots is {slots}; expected at least 1")
    profile.check_covers(application)
    costs = [
        profile.costs[job.name, stage.name] for job in application.jobs for stage in job.stages
    ]
    job_table, successor = _job_table(application)
    stage_table, child = _stage_table(application.jobs, costs)
    return Model(
        job=job_table,
        successor=successor,
        stage=stage_table,
        child=child,
        cost=_cost_table(application.jobs, costs),
        residual=np.concatenate([cost.residual for cost in costs]).astype(np.float64),
        slowdown=np.stack([_slowdown_row(cost, slots) for cost in costs]),
        job_bits=(len(application.jobs) - 1).bit_length(),
        stage_bits=(len(costs) - 1).bit_length(),
    )


def _job_table(application: Application) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    jobs, dependent = application.jobs, application.dependent
    admission = sorted(range(len(jobs)), key=lambda j: (not dependent[j], j))
    successors = [
        [k for k, waits in enumerate(application.predecessors) if j in waits]
        for j in range(len(jobs))
    ]
    starts = np.cumsum([0] + [len(s) for s in successors])
    stages = np.cumsum([0] + [len(job.stages) for job in jobs])
    table = np.zeros((len(jobs), 8), dtype=np.int64)
    table[:, DEPENDENT] = dependent
    table[:, STATEFUL] = [job.stateful for job in jobs]
    table[:, N_PREDECESSORS] = [len(waits) for waits in application.predecessors]
    table[:, RANK] = [admission.index(j) for j in range(len(jobs))]
    table[:, SUCCESSORS], table[:, SUCCESSORS_END] = starts[:-1], starts[1:]
    table[:, STAGES], table[:, STAGES_END] = stages[:-1], stages[1:]
    return table, np.array([k for s in successors for k in s], dtype=np.int64)


def _stage_table(
    jobs: tuple[Job, ...], costs: list[StageCost]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    table = np.zeros((len(costs), 8), dtype=np.int64)
    children: list[int] = []
    first = 0
    for j, job in enumerate(jobs):
        parents = job.stage_parents()
        for s, stage in enumerate(job.stages):
            own = [first + k for k, waits in enumerate(parents) if s in waits]
            table[first + s, :RESIDUAL] = (
                j,
                stage.records_per_task,
                stage.max_tasks,
                len(parents[s]),
                len(children),
                len(children) + len(own),
            )
            children.extend(own)
        first += len(job.stages)
    sizes = [len(cost.residual) for cost in costs]
    table[:, RESIDUAL] = np.cumsum([0, *sizes])[:-1]
    table[:, RESIDUAL_SIZE] = sizes
    return table, np.array(children, dtype=np.int64)


def _cost_table(jobs: tuple[Job, ...], costs: list[StageCost]) -> NDArray[np.float64]:
    selectivities = [stage.selectivity for job in jobs for stage in job.stages]
    return np.array(
        [
            [cost.wait_s, cost.fixed_s, cost.per_record_s, selectivity, cost.failure_probability]
            for cost, selectivity in zip(costs, selectivities, strict=True)
        ]
    )


def _slowdown_row(cost: StageCost, slots: int) -> NDArray[np.float64]:
    """Cut or extend (by its last value) a slowdown table to slots + 1 entries."""
    missing = max(slots + 1 - len(cost.slowdown), 0)
    return np.concatenate([cost.slowdown[: slots + 1], np.full(missing, cost.slowdown[-1])])
