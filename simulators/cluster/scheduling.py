"""Compiled rules of one simulated cluster: who is admitted, who gets a slot, how long it takes."""

from __future__ import annotations

import math
from typing import Any

import numba as nb
import numpy as np
from numpy.typing import NDArray

from runtime.plan import Policy, Pools
from simulators.arrived import unsigned
from simulators.cluster import state as st
from simulators.cluster.model import Model
from simulators.cluster.state import State
from simulators.compiled import inner
from simulators.noise import uniform

SINGLE, HARD, SOFT = map(int, Pools)  # numba wants plain numbers
FAIR = int(Policy.FAIR)
NOISE, FAILS, NOISE_RETRY, FAILS_RETRY = range(4)
PLACE_BITS = 22
PLACE_MASK = (1 << PLACE_BITS) - 1
KEY_SHIFT = PLACE_BITS + 2


@inner
def ends_before(a: Any, b: Any) -> Any:
    """Return whether a task ends before another; no branches, as nothing could predict them."""
    return (a.end_bits < b.end_bits) | ((a.end_bits == b.end_bits) & (a.key < b.key))


@inner
def move_task(source: int, target: int, s: State) -> None:
    """Copy a task to another place of the heap."""
    old, new = s.task[unsigned(source)], s.task[unsigned(target)]
    new.end_bits = old.end_bits
    new.key = old.key


@inner
def sift_up(s: State) -> None:
    """Move the last task of the heap, which started last, to where it belongs."""
    i = nb.int64(s.cluster[0].running_tasks) - 1
    end_bits, key = s.task[unsigned(i)].end_bits, s.task[unsigned(i)].key
    while i > 0:
        above = (i - 1) >> 1
        if s.task[unsigned(above)].end_bits <= end_bits:  # among equals it has the highest key
            break
        move_task(above, i, s)
        i = above
    place = s.task[unsigned(i)]
    place.end_bits = end_bits
    place.key = key


@inner
def sift_down(s: State) -> None:
    """Move the first task of the heap to where it belongs."""
    n = nb.int64(s.cluster[0].running_tasks)
    end_bits, key = s.task[0].end_bits, s.task[0].key
    i, below = 0, 1
    while below < n:
        if below + 1 < n:
            below += ends_before(s.task[unsigned(below + 1)], s.task[unsigned(below)])
        child = s.task[unsigned(below)]
        if end_bits < child.end_bits or (end_bits == child.end_bits and key < child.key):
            break
        move_task(below, i, s)
        i, below = below, 2 * below + 1
    place = s.task[unsigned(i)]
    place.end_bits = end_bits
    place.key = key


@inner
def add_task(end_s: float, key: int, s: State) -> None:
    """Put a task that starts now into the heap, at first in the place of one that has ended."""
    cluster = s.cluster[0]
    gap = cluster.gap
    place = s.task[unsigned(0 if gap else cluster.running_tasks)]
    place.end_s = end_s
    place.key = key
    if gap:
        cluster.gap = 0
        sift_down(s)
    else:
        cluster.running_tasks += 1
        sift_up(s)


@inner
def close_gap(s: State) -> None:
    """Fill the place of a task that ended with the last one of the heap."""
    cluster = s.cluster[0]
    if cluster.gap:
        cluster.gap = 0
        cluster.running_tasks -= 1
        move_task(cluster.running_tasks, 0, s)
        sift_down(s)


@inner
def insert_ordered(queue: NDArray[np.int64], length: int, entry: int) -> None:
    """Insert into a queue kept in ascending order; later entries mostly belong at its end."""
    i = length
    while i > 0 and queue[unsigned(i - 1)] > entry:
        queue[unsigned(i)] = queue[unsigned(i - 1)]
        i -= 1
    queue[unsigned(i)] = entry


@inner
def remove_entry(queue: NDArray[np.int64], length: int, i: int) -> None:
    """Remove entry i of a queue, keeping the order."""
    while i + 1 < length:
        queue[unsigned(i)] = queue[unsigned(i + 1)]
        i += 1


@inner
def make_runnable(place: int, klass: int, model: Model, s: State) -> None:
    """Turn a stage whose parents have ended into a task set."""
    batch = s.batch[unsigned(place >> model.stage_bits)]
    stage = place & ((1 << model.stage_bits) - 1)
    tables = model.stage[unsigned(stage)]
    records = math.floor(batch.records * tables.selectivity + 0.5)
    per_task = tables.records_per_task
    tasks = min(max((records + per_task - 1) // per_task, 1), tables.max_tasks)
    row = s.stage[unsigned(place)]
    row.next_record = batch.first_record
    row.base = records // tasks
    row.extra = records - row.base * tasks
    row.unstarted = tasks
    job_place = (place >> model.stage_bits) << model.job_bits | tables.job
    entry = s.job[unsigned(job_place)].admission << PLACE_BITS | place
    pool = s.pool[unsigned(klass)]
    insert_ordered(s.task_set[unsigned(klass)], pool.task_sets, entry)
    pool.task_sets += 1
    pool.queued += tasks


@inner
def push_ended(job_place: int, s: State) -> None:
    """Note a job that ends at this instant; they end in the order in which they were noted."""
    s.ending[s.cluster[0].ending] = job_place
    s.cluster[0].ending += 1


@inner
def make_ready(job_place: int, model: Model, s: State) -> None:
    """Queue a job that waits for nothing but a token, or end it at once if it is cancelled."""
    if s.job[unsigned(job_place)].failed:
        push_ended(job_place, s)
        return
    batch = s.batch[unsigned(job_place >> model.job_bits)]
    job = model.job[unsigned(job_place & ((1 << model.job_bits) - 1))]
    order = batch.number * len(model.job) + job.rank
    pool = s.pool[job.dependent]
    insert_ordered(s.ready[job.dependent], pool.ready, order << PLACE_BITS | job_place)
    pool.ready += 1


@inner
def admit(klass: int, model: Model, s: State) -> None:
    """Give the first ready job of a class a token and make its root stages runnable."""
    queue, pool = s.ready[unsigned(klass)], s.pool[unsigned(klass)]
    job_place = queue[0] & PLACE_MASK
    remove_entry(queue, pool.ready, 0)
    pool.ready -= 1
    pool.running += 1
    place = job_place >> model.job_bits
    batch = s.batch[unsigned(place)]
    if batch.start_s < 0.0:
        batch.start_s = s.cluster[0].now_s
    row = s.job[unsigned(job_place)]
    row.phase = st.ADMITTED
    row.admission = s.cluster[0].admissions
    s.cluster[0].admissions += 1
    job = model.job[unsigned(job_place & ((1 << model.job_bits) - 1))]
    for stage in range(job.first_stage, job.end_stage):
        if model.stage[stage].n_parents == 0:
            make_runnable(place << model.stage_bits | nb.int64(stage), klass, model, s)


@inner
def next_class(s: State) -> int:
    """Return the class whose first ready job is admitted next, -1 if none may be.

    Oldest batch first, then dependent before independent, then position.
    """
    cluster, first, second = s.cluster[0], s.pool[0], s.pool[1]
    have_0 = first.ready > 0
    have_1 = second.ready > 0
    if cluster.per_pool:
        have_0 = have_0 and first.running < cluster.parallelism
        have_1 = have_1 and second.running < cluster.parallelism
    elif first.running + second.running >= cluster.parallelism:
        return -1
    if have_0 and have_1:
        return 1 if s.ready[1, 0] < s.ready[0, 0] else 0
    if have_1:
        return 1
    return 0 if have_0 else -1


@inner
def admit_all(model: Model, s: State) -> None:
    """Admit ready jobs while tokens last."""
    klass = next_class(s)
    while klass >= 0:
        admit(klass, model, s)
        klass = next_class(s)


@inner
def attempt_s(records: int, tables: Any, busy: int, draw: float, model: Model) -> float:
    """Return the time of one attempt of a task, given a uniform draw for its residual."""
    residual = model.residual[unsigned(tables.residual + int(draw * tables.residual_size))]
    compute = (tables.fixed_s + tables.per_record_s * records) * residual
    took_s: float = tables.wait_s + compute * model.slowdown[unsigned(tables.slowdown + busy)]
    return took_s


@inner
def start_task(klass: int, i: int, model: Model, s: State) -> None:
    """Start the next task of the i-th task set of a class; a failed attempt is repeated at once."""
    cluster, pool = s.cluster[0], s.pool[unsigned(klass)]
    place = s.task_set[unsigned(klass), unsigned(i)] & PLACE_MASK
    stage = place & ((1 << model.stage_bits) - 1)
    tables = model.stage[unsigned(stage)]
    row = s.stage[unsigned(place)]
    first = row.next_record
    longer = row.extra > 0
    records = row.base + longer
    row.next_record = first + records
    row.extra -= longer
    row.running += 1
    row.unstarted -= 1
    pool.busy += 1
    pool.queued -= 1
    busy = s.pool[0].busy + s.pool[1].busy
    key = cluster.key
    took = attempt_s(records, tables, busy, uniform(key, stage, first, NOISE), model)
    attempts = 1
    fails = 0
    risk = tables.failure_probability
    if risk > 0.0 and uniform(key, stage, first, FAILS) < risk:
        took += attempt_s(records, tables, busy, uniform(key, stage, first, NOISE_RETRY), model)
        attempts = 2
        fails = 1 if uniform(key, stage, first, FAILS_RETRY) < risk else 0
    batch = s.batch[unsigned(place >> model.stage_bits)]
    batch.tasks += attempts
    batch.busy_s[unsigned(klass)] += took
    heap_key = (cluster.launches << KEY_SHIFT) | (place << 2) | (klass << 1) | fails
    cluster.launches += 1
    add_task(cluster.now_s + took, heap_key, s)
    if row.unstarted == 0:
        remove_entry(s.task_set[unsigned(klass)], pool.task_sets, i)
        pool.task_sets -= 1


@inner
def running_tasks(entry: int, s: State) -> int:
    """Return how many tasks of a task set are running."""
    running: int = s.stage[unsigned(entry & PLACE_MASK)].running
    return running


@inner
def pick_task_set(klass: int, policy: int, s: State) -> int:
    """Return the row of the task set that a pool serves next: first, or fewest running tasks."""
    if policy != FAIR:
        return 0
    best = 0
    sets = s.task_set[unsigned(klass)]
    fewest = running_tasks(sets[0], s)
    for i in range(1, s.pool[unsigned(klass)].task_sets):
        running = running_tasks(sets[i], s)
        if running < fewest:
            best = i
            fewest = running
    return best


@inner
def soft_class(s: State) -> int:
    """Return the class whose pool is furthest below its weight (both have task sets)."""
    share = s.cluster[0].share
    if share == 0.0:
        return 1
    if share == 1.0:
        return 0
    return 1 if s.pool[1].busy * share <= s.pool[0].busy * (1.0 - share) else 0


@inner
def single_queue(policy: int, s: State) -> tuple[int, int]:
    """Return class and row of the task set that one common queue serves next."""
    first = pick_task_set(0, policy, s)
    second = pick_task_set(1, policy, s)
    a = s.task_set[0, unsigned(first)]
    b = s.task_set[1, unsigned(second)]
    if policy == FAIR:
        running_a = running_tasks(a, s)
        running_b = running_tasks(b, s)
        if running_a != running_b:
            return (0, first) if running_a < running_b else (1, second)
    return (0, first) if a < b else (1, second)


@inner
def serve_next(s: State) -> tuple[int, int]:
    """Return class and row of the task set that gets the next slot; class -1 if none may."""
    pools, first, second = s.cluster[0].pools, s.pool[0], s.pool[1]
    have_0 = first.task_sets > 0
    have_1 = second.task_sets > 0
    if pools == HARD:
        have_0 = have_0 and first.busy < first.target
        have_1 = have_1 and second.busy < second.target
    if not (have_0 or have_1):
        return -1, 0
    both = have_0 and have_1
    if both and pools == SINGLE:
        found: tuple[int, int] = single_queue(first.policy, s)
        return found
    klass: int = soft_class(s) if both and pools == SOFT else int(have_1)
    policy = first.policy if pools == SINGLE else s.pool[unsigned(klass)].policy
    return klass, pick_task_set(klass, policy, s)


@inner
def fill_slots(limit: int, model: Model, s: State) -> None:
    """Start up to `limit` tasks while a slot is free for one."""
    for _ in range(limit):
        if s.pool[0].busy + s.pool[1].busy >= model.slots:
            return
        klass, i = serve_next(s)
        if klass < 0:
            return
        start_task(klass, i, model, s)
