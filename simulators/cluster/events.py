"""The compiled event loop of one simulated cluster.

Total order of events: by time; at equal times ends of tasks (in the order of their starts), then
the cut of a batch, then the decision. After every event jobs are admitted and slots are filled
before the next event is looked at.
"""

from __future__ import annotations

import math

from numpy.typing import NDArray

from simulators.cluster import model as mod
from simulators.cluster import state as st
from simulators.cluster.model import Model
from simulators.cluster.scheduling import (
    HARD,
    PLACE_MASK,
    admit_all,
    arrival_time,
    arrived_until,
    fill_slots,
    make_ready,
    make_runnable,
    pop_task,
    push_ended,
    remove_row,
)
from simulators.cluster.state import Arrived, State
from simulators.compiled import jit


@jit
def schedule_idle_cut(tick_s: float, arrived: Arrived, s: State) -> None:
    """Set the next cut of a plan with an idle trigger."""
    whole, real = s.whole, s.real
    if whole[st.OPEN] >= min(whole[st.IDLE_BATCHES], len(s.batch)):
        real[st.NEXT_CUT] = math.inf
        return
    arrival_s, whole[st.TICK] = arrival_time(whole[st.CUT_RECORDS], whole[st.TICK], tick_s, arrived)
    due_s = max(real[st.LAST_CUT] + real[st.INTERVAL], arrival_s)
    real[st.NEXT_CUT] = max(due_s, real[st.NOW])


@jit
def cut_batch(tick_s: float, arrived: Arrived, model: Model, s: State) -> None:
    """Cut the waiting records into a batch; without records or room only the timer goes on."""
    whole, real = s.whole, s.real
    now = real[st.NOW]
    real[st.LAST_CUT] = now
    if whole[st.IDLE_BATCHES] == 0:
        real[st.NEXT_CUT] = now + real[st.INTERVAL]
    count, time_sum = arrived_until(now, tick_s, arrived)
    if whole[st.IDLE_BATCHES] > 0 and count <= whole[st.CUT_RECORDS]:
        # The cut is due at the very arrival; rounding may place that record just after it.
        count = whole[st.CUT_RECORDS] + 1
        time_sum = real[st.CUT_ARRIVAL_SUM] + now
    if count > whole[st.CUT_RECORDS] and whole[st.OPEN] < len(s.batch):
        open_batch(count, time_sum, tick_s, arrived, s)
        start_jobs(whole[st.TAIL], model, s)
    if whole[st.IDLE_BATCHES] > 0:
        schedule_idle_cut(tick_s, arrived, s)


@jit
def open_batch(count: int, time_sum: float, tick_s: float, arrived: Arrived, s: State) -> None:
    """Take a ring place for the records up to `count` and link it as the youngest batch."""
    whole, real = s.whole, s.real
    whole[st.UNUSED] -= 1
    place = s.unused[whole[st.UNUSED]]
    first = whole[st.CUT_RECORDS]
    records = count - first
    row, times = s.batch[place], s.batch_real[place]
    row[st.B_NUMBER] = whole[st.BATCHES]
    row[st.B_VERSION] = whole[st.VERSION]
    row[st.B_RECORDS] = records
    row[st.B_FIRST_RECORD] = first
    row[st.B_TASKS] = 0
    row[st.B_FAILED_JOBS] = 0
    row[st.B_OLDER] = whole[st.TAIL]
    row[st.B_YOUNGER] = -1
    times[st.B_FIRST_ARRIVAL], tick = arrival_time(first, whole[st.TICK], tick_s, arrived)
    times[st.B_LAST_ARRIVAL], whole[st.TICK] = arrival_time(count - 1, tick, tick_s, arrived)
    times[st.B_MEAN_ARRIVAL] = (time_sum - real[st.CUT_ARRIVAL_SUM]) / records
    times[st.B_CUT] = real[st.NOW]
    times[st.B_START] = -1.0
    times[st.B_BUSY_S] = 0.0
    times[st.B_BUSY_S + 1] = 0.0
    if whole[st.TAIL] >= 0:
        s.batch[whole[st.TAIL], st.B_YOUNGER] = place
    else:
        whole[st.HEAD] = place
    whole[st.TAIL] = place
    whole[st.BATCHES] += 1
    whole[st.OPEN] += 1
    whole[st.PENDING_RECORDS] += records
    whole[st.CUT_RECORDS] = count
    real[st.CUT_ARRIVAL_SUM] = time_sum


@jit
def start_jobs(place: int, model: Model, s: State) -> None:
    """Create the jobs of a batch; those that wait for nothing become ready."""
    n_jobs, n_stages = len(model.job), len(model.stage)
    older = s.batch[place, st.B_OLDER]
    s.batch[place, st.B_JOBS_LEFT] = n_jobs
    for stage in range(n_stages):
        row = s.stage[(place << model.stage_bits) | stage]
        row[st.S_WAITS] = model.stage[stage, mod.N_PARENTS]
        row[st.S_UNSTARTED] = 0
        row[st.S_RUNNING] = 0
    for job in range(n_jobs):
        tables = model.job[job]
        row = s.job[(place << model.job_bits) | job]
        row[st.J_WAITS] = tables[mod.N_PREDECESSORS]
        row[st.J_PHASE] = st.WAITING
        row[st.J_FAILED] = 0
        row[st.J_STAGES_LEFT] = tables[mod.STAGES_END] - tables[mod.STAGES]
        if (
            tables[mod.STATEFUL]
            and older >= 0
            and s.job[(older << model.job_bits) | job, st.J_PHASE] != st.ENDED
        ):
            row[st.J_WAITS] += 1
        if row[st.J_WAITS] == 0:
            make_ready((place << model.job_bits) | job, model, s)


@jit
def stop_waiting(job_place: int, model: Model, s: State) -> None:
    """Take away one thing that a job waits for."""
    s.job[job_place, st.J_WAITS] -= 1
    if s.job[job_place, st.J_WAITS] == 0:
        make_ready(job_place, model, s)


@jit
def end_job(job_place: int, tick_s: float, arrived: Arrived, model: Model, s: State) -> None:
    """End a job (done, failed or cancelled) and its batch with the last one."""
    place = job_place >> model.job_bits
    job = job_place - (place << model.job_bits)
    row = s.job[job_place]
    tables = model.job[job]
    if row[st.J_PHASE] == st.ADMITTED:
        s.whole[st.RUNNING + tables[mod.DEPENDENT]] -= 1
    row[st.J_PHASE] = st.ENDED
    failed = row[st.J_FAILED]
    s.batch[place, st.B_FAILED_JOBS] += failed
    for i in range(tables[mod.SUCCESSORS], tables[mod.SUCCESSORS_END]):
        successor = (place << model.job_bits) | model.successor[i]
        s.job[successor, st.J_FAILED] |= failed
        stop_waiting(successor, model, s)
    younger = s.batch[place, st.B_YOUNGER]
    if tables[mod.STATEFUL] and younger >= 0:
        stop_waiting((younger << model.job_bits) | job, model, s)
    s.batch[place, st.B_JOBS_LEFT] -= 1
    if s.batch[place, st.B_JOBS_LEFT] == 0:
        end_batch(place, s)
        if s.whole[st.IDLE_BATCHES] > 0:
            schedule_idle_cut(tick_s, arrived, s)


@jit
def end_batch(place: int, s: State) -> None:
    """Count a finished batch and free its ring place."""
    whole, real = s.whole, s.real
    row, times = s.batch[place], s.batch_real[place]
    records = row[st.B_RECORDS]
    whole[st.PENDING_RECORDS] -= records
    if row[st.B_FAILED_JOBS] > 0:
        whole[st.FAILED_RECORDS] += records
    else:
        whole[st.OUT_RECORDS] += records
    now = real[st.NOW]
    start = times[st.B_START] if times[st.B_START] >= 0.0 else now
    times[st.B_START] = start
    real[st.OUT_AREA] += records * (real[st.PERIOD_END] - now)
    real[st.REPORT_RECORDS] += records
    real[st.ACCUMULATION] += records * (times[st.B_CUT] - times[st.B_MEAN_ARRIVAL])
    real[st.QUEUEING] += records * (start - times[st.B_CUT])
    real[st.PROCESSING] += records * (now - start)
    older, younger = row[st.B_OLDER], row[st.B_YOUNGER]
    if older >= 0:
        s.batch[older, st.B_YOUNGER] = younger
    else:
        whole[st.HEAD] = younger
    if younger >= 0:
        s.batch[younger, st.B_OLDER] = older
    else:
        whole[st.TAIL] = older
    s.unused[whole[st.UNUSED]] = place
    whole[st.UNUSED] += 1
    whole[st.OPEN] -= 1
    write_report(place, s)


@jit
def write_report(place: int, s: State) -> None:
    """Write the report row of a batch that ends now (columns: REPORT_COLUMNS)."""
    i = s.whole[st.REPORTS]
    if i >= len(s.report):
        s.whole[st.REPORTS_LOST] += 1
        return
    row, times, out = s.batch[place], s.batch_real[place], s.report[i]
    out[0] = row[st.B_NUMBER]
    out[1] = row[st.B_VERSION]
    out[2] = row[st.B_RECORDS]
    out[3] = row[st.B_FIRST_RECORD]
    out[4] = times[st.B_FIRST_ARRIVAL]
    out[5] = times[st.B_MEAN_ARRIVAL]
    out[6] = times[st.B_LAST_ARRIVAL]
    out[7] = times[st.B_CUT]
    out[8] = times[st.B_START]
    out[9] = s.real[st.NOW]
    out[10] = row[st.B_TASKS]
    out[11] = times[st.B_BUSY_S]
    out[12] = times[st.B_BUSY_S + 1]
    out[13] = row[st.B_FAILED_JOBS]
    s.whole[st.REPORTS] = i + 1


@jit
def fail_job(job_place: int, model: Model, s: State) -> None:
    """Mark a job as failed and drop its unstarted tasks; running ones go on to their end."""
    place = job_place >> model.job_bits
    job = job_place - (place << model.job_bits)
    klass = model.job[job, mod.DEPENDENT]
    s.job[job_place, st.J_FAILED] = 1
    for stage in range(model.job[job, mod.STAGES], model.job[job, mod.STAGES_END]):
        stage_place = (place << model.stage_bits) | stage
        unstarted = s.stage[stage_place, st.S_UNSTARTED]
        if unstarted == 0:
            continue
        s.whole[st.QUEUED + klass] -= unstarted
        s.stage[stage_place, st.S_UNSTARTED] = 0
        i = 0
        while s.task_set[klass, i, st.Q_PLACE] != stage_place:
            i += 1
        remove_row(s.task_set[klass], s.whole[st.TASK_SETS + klass], i)
        s.whole[st.TASK_SETS + klass] -= 1


@jit
def job_tasks_running(place: int, job: int, model: Model, s: State) -> int:
    """Return how many tasks of a job are running."""
    total = 0
    for stage in range(model.job[job, mod.STAGES], model.job[job, mod.STAGES_END]):
        total += s.stage[(place << model.stage_bits) | stage, st.S_RUNNING]
    return total


@jit
def end_task(key: int, tick_s: float, arrived: Arrived, model: Model, s: State) -> None:
    """End the task with a heap key, and with it perhaps its stage, its job, its batch."""
    stage_place = (key >> 1) & PLACE_MASK
    place = stage_place >> model.stage_bits
    stage = stage_place - (place << model.stage_bits)
    tables = model.stage[stage]
    job = tables[mod.JOB]
    job_place = (place << model.job_bits) | job
    klass = model.job[job, mod.DEPENDENT]
    row = s.stage[stage_place]
    s.whole[st.BUSY + klass] -= 1
    s.whole[st.TASKS_ENDED] += 1
    row[st.S_RUNNING] -= 1
    if key & 1:
        fail_job(job_place, model, s)
    if s.job[job_place, st.J_FAILED]:
        if job_tasks_running(place, job, model, s) == 0:
            push_ended(job_place, s)
    elif row[st.S_UNSTARTED] == 0 and row[st.S_RUNNING] == 0:
        for i in range(tables[mod.CHILDREN], tables[mod.CHILDREN_END]):
            child = (place << model.stage_bits) | model.child[i]
            s.stage[child, st.S_WAITS] -= 1
            if s.stage[child, st.S_WAITS] == 0:
                make_runnable(child, klass, model, s)
        s.job[job_place, st.J_STAGES_LEFT] -= 1
        if s.job[job_place, st.J_STAGES_LEFT] == 0:
            push_ended(job_place, s)
    i = 0
    while i < s.whole[st.ENDING]:  # grows while jobs end
        end_job(s.ending[i], tick_s, arrived, model, s)
        i += 1
    s.whole[st.ENDING] = 0


@jit
def run_until(slots: int, tick_s: float, arrived: Arrived, model: Model, s: State) -> None:
    """Process all events up to the end of the period."""
    whole, real = s.whole, s.real
    end_s = real[st.PERIOD_END]
    while True:
        admit_all(model, s)
        fill_slots(slots, model, s)
        task_s = s.heap_s[0] if whole[st.HEAP] > 0 else math.inf
        event_s = min(task_s, real[st.NEXT_CUT])
        until_s = min(event_s, end_s)
        elapsed_s = until_s - real[st.NOW]
        real[st.BUSY_S] += elapsed_s * whole[st.BUSY]
        real[st.BUSY_S + 1] += elapsed_s * whole[st.BUSY + 1]
        real[st.NOW] = until_s
        if event_s > end_s:
            return
        if task_s <= real[st.NEXT_CUT]:
            key = pop_task(whole, s.heap_s, s.heap_key)
            end_task(key, tick_s, arrived, model, s)
        else:
            cut_batch(tick_s, arrived, model, s)


@jit
def apply_plan(plan: NDArray, targets: NDArray, tick_s: float, arrived: Arrived, s: State) -> None:
    """Take over a plan row (columns: PLAN_COLUMNS) and the targets of hard pools."""
    whole, real = s.whole, s.real
    was_idle = whole[st.IDLE_BATCHES]
    whole[st.POOLS] = int(plan[0])
    real[st.SHARE] = plan[1]
    whole[st.POLICY] = int(plan[2])
    whole[st.POLICY + 1] = int(plan[3])
    whole[st.PARALLELISM] = int(plan[4])
    real[st.INTERVAL] = plan[5]
    whole[st.IDLE_BATCHES] = int(plan[6])
    whole[st.PER_POOL] = int(plan[7])
    whole[st.VERSION] += 1
    if whole[st.POOLS] == HARD:
        whole[st.TARGET] = targets[0]
        whole[st.TARGET + 1] = targets[1]
    if whole[st.IDLE_BATCHES] > 0:
        schedule_idle_cut(tick_s, arrived, s)
    elif was_idle > 0:
        real[st.NEXT_CUT] = max(real[st.NOW], real[st.LAST_CUT] + real[st.INTERVAL])
