"""The compiled event loop of one simulated cluster.

Total order of events: by time; at equal times ends of tasks (in the order of their starts), then
the cut of a batch, then the decision. After every event jobs are admitted and slots are filled
before the next event is looked at. Jobs that end at the same instant (a job and those that are
cancelled by its failure) end in the order in which that became known: first in, first out.
"""

from __future__ import annotations

import math

import numba as nb
import numpy as np
from numpy.typing import NDArray

from simulators.arrived import Arrived, arrival_time, arrived_until, unsigned
from simulators.cluster import state as st
from simulators.cluster.model import Model
from simulators.cluster.scheduling import (
    HARD,
    PLACE_MASK,
    admit_all,
    close_gap,
    fill_slots,
    make_ready,
    make_runnable,
    push_ended,
    remove_entry,
)
from simulators.cluster.state import State
from simulators.compiled import inner


@inner
def schedule_idle_cut(arrived: Arrived, s: State) -> None:
    """Set the next cut of a plan with an idle trigger."""
    cluster = s.cluster[0]
    if cluster.open >= min(cluster.idle_batches, len(s.batch)):
        cluster.next_cut_s = math.inf
        return
    arrival_s, cluster.tick = arrival_time(cluster.cut_records, cluster.tick, arrived)
    due_s = max(cluster.last_cut_s + cluster.interval_s, arrival_s)
    cluster.next_cut_s = max(due_s, cluster.now_s)


@inner
def cut_batch(arrived: Arrived, model: Model, s: State) -> None:
    """Cut the waiting records into a batch; without records or room only the timer goes on."""
    cluster = s.cluster[0]
    now_s = cluster.now_s
    cluster.last_cut_s = now_s
    if cluster.idle_batches == 0:
        cluster.next_cut_s = now_s + cluster.interval_s
    count, time_sum = arrived_until(now_s, arrived)
    if cluster.idle_batches > 0 and count <= cluster.cut_records:
        # The cut is due at the very arrival; rounding may place that record just after it.
        count = cluster.cut_records + 1
        time_sum = cluster.cut_arrival_sum + now_s
    if count > cluster.cut_records and cluster.open < len(s.batch):
        open_batch(count, time_sum, arrived, s)
        start_jobs(model, s)
    if cluster.idle_batches > 0:
        schedule_idle_cut(arrived, s)


@inner
def open_batch(count: int, time_sum: float, arrived: Arrived, s: State) -> None:
    """Take a ring place for the records up to `count` and link it as the youngest batch."""
    cluster = s.cluster[0]
    cluster.unused -= 1
    place = s.unused[cluster.unused]
    first = cluster.cut_records
    batch = s.batch[place]
    batch.number = cluster.batches
    batch.version = cluster.version
    batch.records = count - first
    batch.first_record = first
    batch.tasks = 0
    batch.failed_jobs = 0
    batch.older = cluster.tail
    batch.younger = st.NONE
    batch.first_arrival_s, tick = arrival_time(first, cluster.tick, arrived)
    batch.last_arrival_s, cluster.tick = arrival_time(count - 1, tick, arrived)
    batch.mean_arrival_s = (time_sum - cluster.cut_arrival_sum) / batch.records
    batch.cut_s = cluster.now_s
    batch.start_s = -1.0
    batch.busy_s[0] = 0.0
    batch.busy_s[1] = 0.0
    if cluster.tail != st.NONE:
        s.batch[cluster.tail].younger = place
    else:
        cluster.head = place
    cluster.tail = place
    cluster.batches += 1
    cluster.open += 1
    cluster.pending_records += batch.records
    cluster.cut_records = count
    cluster.cut_arrival_sum = time_sum


@inner
def start_jobs(model: Model, s: State) -> None:
    """Create the jobs of the youngest batch; those that wait for nothing become ready."""
    place = nb.int64(s.cluster[0].tail)
    batch = s.batch[s.cluster[0].tail]
    older = nb.int64(batch.older)
    batch.jobs_left = len(model.job)
    for number in range(len(model.stage)):
        stage = s.stage[unsigned(place << model.stage_bits | number)]
        stage.waits = model.stage[number].n_parents
        stage.unstarted = 0
        stage.running = 0
    for position in range(len(model.job)):
        job, job_place = model.job[position], place << model.job_bits | position
        run = s.job[unsigned(job_place)]
        run.waits = job.n_predecessors
        run.phase = st.WAITING
        run.failed = 0
        run.stages_left = job.n_stages
        if job.stateful and older != st.NONE:
            run.waits += s.job[unsigned(older << model.job_bits | position)].phase != st.ENDED
        if run.waits == 0:
            make_ready(job_place, model, s)


@inner
def stop_waiting(job_place: int, model: Model, s: State) -> None:
    """Take away one thing that a job waits for."""
    run = s.job[unsigned(job_place)]
    run.waits -= 1
    if run.waits == 0:
        make_ready(job_place, model, s)


@inner
def end_job(job_place: int, arrived: Arrived, model: Model, s: State) -> None:
    """End a job (done, failed or cancelled) and its batch with the last one."""
    place = job_place >> model.job_bits
    position = job_place & ((1 << model.job_bits) - 1)
    run, job = s.job[unsigned(job_place)], model.job[unsigned(position)]
    batch = s.batch[unsigned(place)]
    if run.phase == st.ADMITTED:
        s.pool[job.dependent].running -= 1
    run.phase = st.ENDED
    batch.failed_jobs += run.failed
    for i in range(job.first_successor, job.end_successor):
        successor = place << model.job_bits | nb.int64(model.successor[i])
        s.job[unsigned(successor)].failed |= run.failed
        stop_waiting(successor, model, s)
    if job.stateful and batch.younger != st.NONE:
        stop_waiting(nb.int64(batch.younger) << model.job_bits | position, model, s)
    batch.jobs_left -= 1
    if batch.jobs_left == 0:
        end_batch(place, s)
        if s.cluster[0].idle_batches > 0:
            schedule_idle_cut(arrived, s)


@inner
def end_batch(place: int, s: State) -> None:
    """Count a finished batch and free its ring place."""
    cluster, batch = s.cluster[0], s.batch[unsigned(place)]
    records, now_s = batch.records, cluster.now_s
    cluster.pending_records -= records
    if batch.failed_jobs > 0:
        cluster.failed_records += records
    else:
        cluster.out_records += records
    if batch.start_s < 0.0:
        batch.start_s = now_s
    cluster.out_area += records * (cluster.period_end_s - now_s)
    cluster.report_records += records
    cluster.accumulation += records * (batch.cut_s - batch.mean_arrival_s)
    cluster.queueing += records * (batch.start_s - batch.cut_s)
    cluster.processing += records * (now_s - batch.start_s)
    if batch.older != st.NONE:
        s.batch[batch.older].younger = batch.younger
    else:
        cluster.head = batch.younger
    if batch.younger != st.NONE:
        s.batch[batch.younger].older = batch.older
    else:
        cluster.tail = batch.older
    s.unused[cluster.unused] = place
    cluster.unused += 1
    cluster.open -= 1
    write_report(place, s)


@inner
def write_report(place: int, s: State) -> None:
    """Write the report row of a batch that ends now (columns: REPORT_COLUMNS)."""
    i = s.cluster[0].reports
    if i >= len(s.report):
        s.cluster[0].reports_lost += 1
        return
    batch, out = s.batch[unsigned(place)], s.report[i]
    out[0] = batch.number
    out[1] = batch.version
    out[2] = batch.records
    out[3] = batch.first_record
    out[4] = batch.first_arrival_s
    out[5] = batch.mean_arrival_s
    out[6] = batch.last_arrival_s
    out[7] = batch.cut_s
    out[8] = batch.start_s
    out[9] = s.cluster[0].now_s
    out[10] = batch.tasks
    out[11] = batch.busy_s[0]
    out[12] = batch.busy_s[1]
    out[13] = batch.failed_jobs
    s.cluster[0].reports = i + 1


@inner
def fail_job(job_place: int, klass: int, model: Model, s: State) -> None:
    """Mark a job as failed and drop its unstarted tasks; running ones go on to their end."""
    place = job_place >> model.job_bits
    job = model.job[unsigned(job_place & ((1 << model.job_bits) - 1))]
    pool, sets = s.pool[unsigned(klass)], s.task_set[unsigned(klass)]
    s.job[unsigned(job_place)].failed = 1
    for stage in range(job.first_stage, job.end_stage):
        stage_place = place << model.stage_bits | nb.int64(stage)
        run = s.stage[unsigned(stage_place)]
        if run.unstarted == 0:
            continue
        pool.queued -= run.unstarted
        run.unstarted = 0
        i = 0
        while sets[unsigned(i)] & PLACE_MASK != stage_place:
            i += 1
        remove_entry(sets, pool.task_sets, i)
        pool.task_sets -= 1


@inner
def job_tasks_running(job_place: int, model: Model, s: State) -> int:
    """Return how many tasks of a job are running."""
    place = job_place >> model.job_bits
    job = model.job[unsigned(job_place & ((1 << model.job_bits) - 1))]
    total = 0
    for stage in range(job.first_stage, job.end_stage):
        total += s.stage[unsigned(place << model.stage_bits | nb.int64(stage))].running
    return total


@inner
def end_stage(stage_place: int, fails: int, arrived: Arrived, model: Model, s: State) -> None:
    """Act on the end of the last task of a stage, or of one that fails its job."""
    place = stage_place >> model.stage_bits
    tables = model.stage[unsigned(stage_place & ((1 << model.stage_bits) - 1))]
    job_place = place << model.job_bits | nb.int64(tables.job)
    klass = nb.int64(model.job[tables.job].dependent)
    job = s.job[unsigned(job_place)]
    if fails:
        fail_job(job_place, klass, model, s)
    if job.failed:
        if job_tasks_running(job_place, model, s) == 0:
            push_ended(job_place, s)
    else:
        for i in range(tables.first_child, tables.end_child):
            child = place << model.stage_bits | nb.int64(model.child[i])
            waiting = s.stage[unsigned(child)]
            waiting.waits -= 1
            if waiting.waits == 0:
                make_runnable(child, klass, model, s)
        job.stages_left -= 1
        if job.stages_left == 0:
            push_ended(job_place, s)
    i = 0
    while i < s.cluster[0].ending:  # grows while jobs end
        end_job(nb.int64(s.ending[unsigned(i)]), arrived, model, s)
        i += 1
    s.cluster[0].ending = 0


@inner
def end_task(arrived: Arrived, model: Model, s: State) -> bool:
    """End the task that ends first; return whether more changed than that a slot is free."""
    key = s.task[0].key
    s.cluster[0].gap = 1
    fails = key & 1
    stage_place = (key >> 2) & PLACE_MASK
    run = s.stage[unsigned(stage_place)]
    run.running -= 1
    s.pool[unsigned((key >> 1) & 1)].busy -= 1
    s.cluster[0].tasks_ended += 1
    if not fails and run.running + run.unstarted > 0:
        return False
    end_stage(stage_place, fails, arrived, model, s)
    return True


@inner
def pass_time(until_s: float, s: State) -> None:
    """Set the clock and count the slot-seconds of both pools."""
    elapsed_s = until_s - s.cluster[0].now_s
    s.pool[0].busy_s += elapsed_s * s.pool[0].busy
    s.pool[1].busy_s += elapsed_s * s.pool[1].busy
    s.cluster[0].now_s = until_s


@inner
def run_until(arrived: Arrived, model: Model, s: State) -> None:
    """Process all events up to the end of the period."""
    cluster = s.cluster[0]
    end_s = cluster.period_end_s
    changed = True
    while True:
        if changed:
            admit_all(model, s)
        # Before the last event no further task could start, so one free slot is for one task.
        fill_slots(model.slots if changed else 1, model, s)
        close_gap(s)
        task_s = s.task[0].end_s if cluster.running_tasks > 0 else math.inf
        event_s = min(task_s, cluster.next_cut_s)
        pass_time(min(event_s, end_s), s)
        if event_s > end_s:
            return
        changed = True
        if task_s <= cluster.next_cut_s:
            changed = end_task(arrived, model, s)
        else:
            cut_batch(arrived, model, s)


@inner
def apply_plan(plan: NDArray[np.float64], arrived: Arrived, model: Model, s: State) -> None:
    """Take over a plan row (columns: PLAN_COLUMNS)."""
    cluster = s.cluster[0]
    was_idle = cluster.idle_batches
    cluster.pools = int(plan[0])
    cluster.share = plan[1]
    s.pool[0].policy = int(plan[2])
    s.pool[1].policy = int(plan[3])
    cluster.parallelism = int(plan[4])
    cluster.interval_s = plan[5]
    cluster.idle_batches = int(plan[6])
    cluster.per_pool = int(plan[7])
    cluster.version += 1
    if cluster.pools == HARD:
        set_targets(plan[1], model, s)
    if cluster.idle_batches > 0:
        schedule_idle_cut(arrived, s)
    elif was_idle > 0:
        cluster.next_cut_s = max(cluster.now_s, cluster.last_cut_s + cluster.interval_s)


@inner
def set_targets(share: float, model: Model, s: State) -> None:
    """Divide the slots between two hard pools (the rule of `runtime.plan.hard_slots`)."""
    dependent = 0
    for position in range(len(model.job)):
        dependent += model.job[position].dependent
    first = min(max(math.floor(share * model.slots + 0.5), 1), model.slots - 1)
    if dependent == 0:
        first = model.slots
    elif dependent == len(model.job):
        first = 0
    s.pool[0].target = first
    s.pool[1].target = model.slots - first
    if model.slots == 1 and 0 < dependent < len(model.job):
        s.pool[0].target, s.pool[1].target = 1, 1  # both share the one slot in time
