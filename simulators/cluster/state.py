"""The state of many simulated clusters: its arrays, their columns, their allocation."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from runtime.snapshot import REPORT_COLUMNS
from simulators.cluster.model import Model

# Columns of State.whole (int64). Pairs are indexed by class: 0 independent, 1 dependent.
(
    KEY,  # random key of the environment (bits of a uint64)
    CUT_RECORDS,  # records cut so far
    OUT_RECORDS,
    FAILED_RECORDS,
    PENDING_RECORDS,
    BATCHES,  # batches cut so far
    OPEN,  # batches cut and not ended
    HEAD,  # ring place of the oldest open batch, -1 if none
    TAIL,  # ring place of the youngest open batch, -1 if none
    UNUSED,  # number of unused ring places
    TICK,  # tick that holds the first uncut record, or an earlier one
    LAUNCHES,
    ADMISSIONS,
    HEAP,  # running tasks
    REPORTS,  # rows written in this period
    REPORTS_LOST,  # rows for which there was no room
    TASKS_ENDED,
    VERSION,
    POOLS,
    PARALLELISM,
    PER_POOL,
    IDLE_BATCHES,
    POLICY,  # and POLICY + 1
) = range(23)
TARGET = 24  # slots of a hard pool, and TARGET + 1
RUNNING = 26  # jobs that hold a token, and RUNNING + 1
READY = 28  # length of a ready queue, and READY + 1
TASK_SETS = 30  # length of a list of task sets, and TASK_SETS + 1
BUSY = 32  # busy slots, and BUSY + 1
QUEUED = 34  # runnable tasks without a slot, and QUEUED + 1
ENDING = 36  # jobs noted in `State.ending`
WHOLE_COLUMNS = 37

# Columns of State.real (float64).
(
    NOW,
    PERIOD_END,
    LAST_CUT,
    NEXT_CUT,
    INTERVAL,
    SHARE,
    CUT_ARRIVAL_SUM,  # sum of the arrival times of all cut records
    OUT_AREA,  # integral over the period of the records that left in it
    ACCUMULATION,
    QUEUEING,
    PROCESSING,
    REPORT_RECORDS,
    BUSY_S,  # slot-seconds in the period, and BUSY_S + 1
) = range(13)
REAL_COLUMNS = 14

# Columns of State.batch (int64) and of State.batch_real (float64).
(
    B_NUMBER,
    B_VERSION,
    B_RECORDS,
    B_FIRST_RECORD,
    B_TASKS,
    B_JOBS_LEFT,
    B_FAILED_JOBS,
    B_OLDER,
    B_YOUNGER,
) = range(9)
B_FIRST_ARRIVAL, B_MEAN_ARRIVAL, B_LAST_ARRIVAL, B_CUT, B_START, B_BUSY_S = range(6)
BATCH_REAL_COLUMNS = 7  # B_BUSY_S is a pair

# Columns of State.job (int64).
J_WAITS, J_PHASE, J_FAILED, J_STAGES_LEFT, J_ADMISSION = range(5)
WAITING, ADMITTED, ENDED = range(3)  # values of J_PHASE

# Columns of State.stage (int64).
S_WAITS, S_NEXT_TASK, S_UNSTARTED, S_RUNNING, S_BASE, S_EXTRA = range(6)

# Columns of the queue rows (int64).
Q_ORDER, Q_PLACE = range(2)


class State(NamedTuple):
    """Arrays of all environments (first axis N), or views of one environment without it.

    A batch lives at a ring place p; its jobs at p << job_bits | j, its stages at
    p << stage_bits | s. Below, n_jobs and n_stages are these powers of two.

    Attributes:
        whole: int64 [N, WHOLE_COLUMNS].
        real: float64 [N, REAL_COLUMNS].
        batch: int64 [N, max_open, 9].
        batch_real: float64 [N, max_open, BATCH_REAL_COLUMNS].
        job: int64 [N, max_open * n_jobs, 5].
        stage: int64 [N, max_open * n_stages, 6].
        ready: int64 [N, 2, max_open * n_jobs, 2], ready jobs of a class in admission order.
        task_set: int64 [N, 2, max_open * n_stages, 2], stages with unstarted tasks, FIFO order.
        heap_s: float64 [N, slots], ends of running tasks, a binary heap.
        heap_key: int64 [N, slots], start number << 24 | stage place << 1 | fails.
        unused: int64 [N, max_open], ring places without a batch.
        ending: int64 [N, max_open * n_jobs], jobs that end at the present instant.
        report: float64 [N, report_rows, len(REPORT_COLUMNS)], batches that ended in the period.
    """

    whole: NDArray[np.int64]
    real: NDArray[np.float64]
    batch: NDArray[np.int64]
    batch_real: NDArray[np.float64]
    job: NDArray[np.int64]
    stage: NDArray[np.int64]
    ready: NDArray[np.int64]
    task_set: NDArray[np.int64]
    heap_s: NDArray[np.float64]
    heap_key: NDArray[np.int64]
    unused: NDArray[np.int64]
    ending: NDArray[np.int64]
    report: NDArray[np.float64]


class Arrived(NamedTuple):
    """Arrivals of all environments, or of one without the first axis.

    Attributes:
        count: int64 [N, n_ticks + 1], records that arrived before each tick.
        time_sum: float64 [N, n_ticks + 1], sum of their arrival times, seconds.
    """

    count: NDArray[np.int64]
    time_sum: NDArray[np.float64]


def allocate_state(n_envs: int, model: Model, max_open: int, report_rows: int) -> State:
    """Allocate zeroed state.

    Args:
        n_envs: Number of environments N.
        model: The cluster.
        max_open: Batches that may be open at once.
        report_rows: Reports that one period may bring.
    """
    n_jobs, n_stages = 1 << model.job_bits, 1 << model.stage_bits
    slots = model.slowdown.shape[1] - 1

    def whole(*shape: int) -> NDArray[np.int64]:
        return np.zeros((n_envs, *shape), dtype=np.int64)

    def real(*shape: int) -> NDArray[np.float64]:
        return np.zeros((n_envs, *shape), dtype=np.float64)

    return State(
        whole=whole(WHOLE_COLUMNS),
        real=real(REAL_COLUMNS),
        batch=whole(max_open, 9),
        batch_real=real(max_open, BATCH_REAL_COLUMNS),
        job=whole(max_open * n_jobs, 5),
        stage=whole(max_open * n_stages, 6),
        ready=whole(2, max_open * n_jobs, 2),
        task_set=whole(2, max_open * n_stages, 2),
        heap_s=real(slots),
        heap_key=whole(slots),
        unused=whole(max_open),
        ending=whole(max_open * n_jobs),
        report=real(report_rows, len(REPORT_COLUMNS)),
    )
