"""The state of many simulated clusters: its rows, its arrays, their allocation.

Rows are structured (named fields at fixed offsets), so that compiled code reads a field at a
constant distance from its row; indices are unsigned, because numba wraps signed ones around.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from runtime.plan import PLAN_COLUMNS
from runtime.snapshot import REPORT_COLUMNS, SIGNALS
from simulators.cluster.model import Model

NONE = 2**32 - 1  # in a field that names a ring place: no batch
WAITING, ADMITTED, ENDED = range(3)  # values of JobRun.phase

CLUSTER = np.dtype(
    [
        ("now_s", np.float64),
        ("next_cut_s", np.float64),
        ("period_end_s", np.float64),
        ("key", np.uint64),  # random key of the environment
        ("launches", np.int64),  # tasks started so far
        ("running_tasks", np.uint32),  # length of the heap
        ("gap", np.int32),  # whether the first task of the heap has ended
        ("tasks_ended", np.int64),  # in the period
        ("pools", np.int32),
        ("parallelism", np.int64),
        ("per_pool", np.int32),
        ("idle_batches", np.int32),
        ("share", np.float64),
        ("interval_s", np.float64),
        ("last_cut_s", np.float64),
        ("version", np.int64),
        ("admissions", np.int64),  # jobs admitted so far
        ("batches", np.int64),  # batches cut so far
        ("open", np.int64),  # batches cut and not ended
        ("head", np.uint32),  # ring place of the oldest open batch
        ("tail", np.uint32),  # ring place of the youngest open batch
        ("unused", np.uint32),  # number of unused ring places
        ("ending", np.uint32),  # number of jobs that end at the present instant
        ("tick", np.int64),  # tick that holds the first uncut record, or an earlier one
        ("cut_records", np.int64),  # records cut so far
        ("cut_arrival_sum", np.float64),  # sum of their arrival times
        ("seen_records", np.int64),  # records that had arrived by the last decision
        ("seen_arrival_sum", np.float64),  # sum of their arrival times
        ("out_records", np.int64),
        ("failed_records", np.int64),
        ("pending_records", np.int64),
        ("out_area", np.float64),  # integral over the period of the records that left in it
        ("accumulation", np.float64),  # record-seconds of the batches that ended in the period
        ("queueing", np.float64),
        ("processing", np.float64),
        ("report_records", np.float64),
        ("reports", np.uint32),  # rows written in this period
        ("reports_lost", np.int32),  # rows for which there was no room
    ],
    align=True,
)
POOL = np.dtype(
    [
        ("busy_s", np.float64),  # slot-seconds in the period
        ("busy", np.int32),  # busy slots
        ("queued", np.int64),  # runnable tasks without a slot
        ("task_sets", np.uint32),  # length of the list of task sets
        ("ready", np.uint32),  # length of the queue of ready jobs
        ("running", np.int64),  # jobs that hold a token
        ("target", np.int32),  # slots, if the pools are hard
        ("policy", np.int32),
    ],
    align=True,
)
BATCH = np.dtype(
    [
        ("first_record", np.int64),
        ("busy_s", np.float64, 2),  # slot-seconds used so far, by class
        ("tasks", np.int64),
        ("jobs_left", np.int32),
        ("failed_jobs", np.int32),
        ("older", np.uint32),  # ring places of the neighbours in cut order
        ("younger", np.uint32),
        ("number", np.int64),
        ("version", np.int64),
        ("records", np.int64),
        ("first_arrival_s", np.float64),
        ("mean_arrival_s", np.float64),
        ("last_arrival_s", np.float64),
        ("cut_s", np.float64),
        ("start_s", np.float64),  # -1 before the first admission
    ],
    align=True,
)
JOB_RUN = np.dtype(
    [
        ("admission", np.int64),
        ("waits", np.int32),  # jobs it waits for
        ("stages_left", np.int32),
        ("phase", np.int32),
        ("failed", np.int32),
    ],
    align=True,
)
STAGE_RUN = np.dtype(
    [
        ("next_record", np.int64),  # first record of the next task
        ("base", np.int64),  # records of a task
        ("extra", np.int32),  # unstarted tasks that take one record more
        ("unstarted", np.int32),
        ("running", np.int32),
        ("waits", np.int32),  # stages it waits for
    ],
    align=True,
)
TASK = np.dtype(
    {
        "names": ["end_s", "end_bits", "key"],
        "formats": [np.float64, np.int64, np.int64],
        "offsets": [0, 0, 8],
        "itemsize": 16,
    }
)
"""A running task. Key: launch number << KEY_SHIFT | stage place << 2 | class << 1 | fails. The end
is read as a time and as the integer of the same bits: no time is negative, so both have the same
order, and integers are compared faster."""


class State(NamedTuple):
    """Arrays of all environments (first axis N), or views of one environment without it.

    A batch lives at a ring place p; its jobs at p << job_bits | j, its stages at
    p << stage_bits | s. Below, n_jobs and n_stages are these powers of two. Classes are
    0 independent, 1 dependent.

    Attributes:
        cluster: CLUSTER [N, 1].
        pool: POOL [N, 2], by class.
        batch: BATCH [N, max_open].
        job: JOB_RUN [N, max_open * n_jobs].
        stage: STAGE_RUN [N, max_open * n_stages].
        ready: int64 [N, 2, max_open * n_jobs], ready jobs of a class in admission order, as
            order << PLACE_BITS | job place.
        task_set: int64 [N, 2, max_open * n_stages], stages with unstarted tasks in FIFO order, as
            admission << PLACE_BITS | stage place.
        task: TASK [N, slots], running tasks, a binary heap ordered by (end_s, key).
        unused: uint32 [N, max_open], ring places without a batch.
        ending: uint32 [N, max_open * n_jobs], jobs that end at the present instant.
        report: float64 [N, report_rows, len(REPORT_COLUMNS)], batches that ended in the period.
        plan: float64 [N, len(PLAN_COLUMNS)], the plan in force.
        signals: float64 [N, len(SIGNALS)].
    """

    cluster: Any
    pool: Any
    batch: Any
    job: Any
    stage: Any
    ready: NDArray[np.int64]
    task_set: NDArray[np.int64]
    task: Any
    unused: NDArray[np.uint32]
    ending: NDArray[np.uint32]
    report: NDArray[np.float64]
    plan: NDArray[np.float64]
    signals: NDArray[np.float64]


def allocate_state(n_envs: int, model: Model, max_open: int, report_rows: int) -> State:
    """Allocate zeroed state.

    Args:
        n_envs: Number of environments N.
        model: The cluster.
        max_open: Batches that may be open at once.
        report_rows: Reports that one period may bring.
    """
    n_jobs, n_stages = max_open << model.job_bits, max_open << model.stage_bits
    return State(
        cluster=np.zeros((n_envs, 1), dtype=CLUSTER),
        pool=np.zeros((n_envs, 2), dtype=POOL),
        batch=np.zeros((n_envs, max_open), dtype=BATCH),
        job=np.zeros((n_envs, n_jobs), dtype=JOB_RUN),
        stage=np.zeros((n_envs, n_stages), dtype=STAGE_RUN),
        ready=np.zeros((n_envs, 2, n_jobs), dtype=np.int64),
        task_set=np.zeros((n_envs, 2, n_stages), dtype=np.int64),
        task=np.zeros((n_envs, model.slots), dtype=TASK),
        unused=np.zeros((n_envs, max_open), dtype=np.uint32),
        ending=np.zeros((n_envs, n_jobs), dtype=np.uint32),
        report=np.zeros((n_envs, report_rows, len(REPORT_COLUMNS))),
        plan=np.zeros((n_envs, len(PLAN_COLUMNS))),
        signals=np.zeros((n_envs, len(SIGNALS))),
    )
