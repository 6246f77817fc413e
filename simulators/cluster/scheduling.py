"""Compiled rules of one simulated cluster: who is admitted, who gets a slot, how long it takes."""

from __future__ import annotations

import math

from numpy.typing import NDArray

from simulators.cluster import model as mod
from simulators.cluster import state as st
from simulators.cluster.model import Model
from simulators.cluster.state import Arrived, State
from simulators.compiled import jit
from simulators.noise import uniform

SINGLE, HARD, SOFT = 0, 1, 2
FAIR = 1
NOISE, FAILS, NOISE_RETRY, FAILS_RETRY = range(4)
KEY_SHIFT = 24
PLACE_MASK = (1 << (KEY_SHIFT - 1)) - 1


@jit
def arrived_until(time_s: float, tick_s: float, arrived: Arrived) -> tuple[int, float]:
    """Return how many records have arrived by a time, and the sum of their arrival times."""
    tick = min(int(time_s / tick_s), len(arrived.count) - 2)
    before = arrived.count[tick]
    in_tick = arrived.count[tick + 1] - before
    share = time_s / tick_s - tick
    here = min(int(in_tick * share + 0.5), in_tick)
    time_sum = arrived.time_sum[tick]
    if here > 0:
        time_sum += here * (tick * tick_s) + tick_s * (here * here) / (2.0 * in_tick)
    return before + here, time_sum


@jit
def arrival_time(record: int, tick: int, tick_s: float, arrived: Arrived) -> tuple[float, int]:
    """Return when a record arrives and its tick, searching from a tick at or before it."""
    last = len(arrived.count) - 2
    while tick <= last and arrived.count[tick + 1] <= record:
        tick += 1
    if tick > last:
        return math.inf, last
    before = arrived.count[tick]
    in_tick = arrived.count[tick + 1] - before
    return (tick + (record - before + 0.5) / in_tick) * tick_s, tick


@jit
def push_task(whole: NDArray, heap_s: NDArray, heap_key: NDArray, end_s: float, key: int) -> None:
    """Add a running task to the heap ordered by (end, key)."""
    i = whole[st.HEAP]
    whole[st.HEAP] = i + 1
    while i > 0:
        parent = (i - 1) >> 1
        if heap_s[parent] < end_s or (heap_s[parent] == end_s and heap_key[parent] < key):
            break
        heap_s[i] = heap_s[parent]
        heap_key[i] = heap_key[parent]
        i = parent
    heap_s[i] = end_s
    heap_key[i] = key


@jit
def pop_task(whole: NDArray, heap_s: NDArray, heap_key: NDArray) -> int:
    """Remove the task that ends first and return its key."""
    first = heap_key[0]
    n = whole[st.HEAP] - 1
    whole[st.HEAP] = n
    end_s = heap_s[n]
    key = heap_key[n]
    i = 0
    while True:
        child = 2 * i + 1
        if child >= n:
            break
        right = child + 1
        if right < n and (
            heap_s[right] < heap_s[child]
            or (heap_s[right] == heap_s[child] and heap_key[right] < heap_key[child])
        ):
            child = right
        if end_s < heap_s[child] or (end_s == heap_s[child] and key < heap_key[child]):
            break
        heap_s[i] = heap_s[child]
        heap_key[i] = heap_key[child]
        i = child
    heap_s[i] = end_s
    heap_key[i] = key
    return first


@jit
def insert_ordered(queue: NDArray, length: int, order: int, place: int) -> None:
    """Insert a row into a queue kept in ascending order; later rows mostly belong at its end."""
    i = length
    while i > 0 and queue[i - 1, st.Q_ORDER] > order:
        queue[i, st.Q_ORDER] = queue[i - 1, st.Q_ORDER]
        queue[i, st.Q_PLACE] = queue[i - 1, st.Q_PLACE]
        i -= 1
    queue[i, st.Q_ORDER] = order
    queue[i, st.Q_PLACE] = place


@jit
def remove_row(queue: NDArray, length: int, i: int) -> None:
    """Remove row i of a queue, keeping the order."""
    for k in range(i, length - 1):
        queue[k, st.Q_ORDER] = queue[k + 1, st.Q_ORDER]
        queue[k, st.Q_PLACE] = queue[k + 1, st.Q_PLACE]


@jit
def make_runnable(place: int, klass: int, model: Model, s: State) -> None:
    """Turn a stage whose parents have ended into a task set."""
    batch = place >> model.stage_bits
    stage = place - (batch << model.stage_bits)
    tables = model.stage[stage]
    records = int(
        math.floor(s.batch[batch, st.B_RECORDS] * model.cost[stage, mod.SELECTIVITY] + 0.5)
    )
    per_task = tables[mod.RECORDS_PER_TASK]
    tasks = min(max((records + per_task - 1) // per_task, 1), tables[mod.MAX_TASKS])
    row = s.stage[place]
    row[st.S_NEXT_TASK] = 0
    row[st.S_UNSTARTED] = tasks
    row[st.S_BASE] = records // tasks
    row[st.S_EXTRA] = records % tasks
    job_place = (batch << model.job_bits) | tables[mod.JOB]
    order = s.job[job_place, st.J_ADMISSION] * len(model.stage) + stage
    length = s.whole[st.TASK_SETS + klass]
    insert_ordered(s.task_set[klass], length, order, place)
    s.whole[st.TASK_SETS + klass] = length + 1
    s.whole[st.QUEUED + klass] += tasks


@jit
def push_ended(job_place: int, s: State) -> None:
    """Note a job that ends at this instant; they end in the order in which they were noted."""
    s.ending[s.whole[st.ENDING]] = job_place
    s.whole[st.ENDING] += 1


@jit
def make_ready(job_place: int, model: Model, s: State) -> None:
    """Queue a job that waits for nothing but a token, or end it at once if it is cancelled."""
    batch = job_place >> model.job_bits
    job = job_place - (batch << model.job_bits)
    if s.job[job_place, st.J_FAILED]:
        push_ended(job_place, s)
        return
    klass = model.job[job, mod.DEPENDENT]
    length = s.whole[st.READY + klass]
    order = s.batch[batch, st.B_NUMBER] * len(model.job) + model.job[job, mod.RANK]
    insert_ordered(s.ready[klass], length, order, job_place)
    s.whole[st.READY + klass] = length + 1


@jit
def admit(klass: int, model: Model, s: State) -> None:
    """Give the first ready job of a class a token and make its root stages runnable."""
    job_place = s.ready[klass, 0, st.Q_PLACE]
    remove_row(s.ready[klass], s.whole[st.READY + klass], 0)
    s.whole[st.READY + klass] -= 1
    s.whole[st.RUNNING + klass] += 1
    batch = job_place >> model.job_bits
    job = job_place - (batch << model.job_bits)
    if s.batch_real[batch, st.B_START] < 0.0:
        s.batch_real[batch, st.B_START] = s.real[st.NOW]
    s.job[job_place, st.J_PHASE] = st.ADMITTED
    s.job[job_place, st.J_ADMISSION] = s.whole[st.ADMISSIONS]
    s.whole[st.ADMISSIONS] += 1
    for stage in range(model.job[job, mod.STAGES], model.job[job, mod.STAGES_END]):
        if model.stage[stage, mod.N_PARENTS] == 0:
            make_runnable((batch << model.stage_bits) | stage, klass, model, s)


@jit
def next_class(s: State) -> int:
    """Return the class whose first ready job is admitted next, -1 if none may be.

    Oldest batch first, then dependent before independent, then position.
    """
    whole = s.whole
    limit = whole[st.PARALLELISM]
    have_0 = whole[st.READY] > 0
    have_1 = whole[st.READY + 1] > 0
    if whole[st.PER_POOL]:
        have_0 = have_0 and whole[st.RUNNING] < limit
        have_1 = have_1 and whole[st.RUNNING + 1] < limit
    elif whole[st.RUNNING] + whole[st.RUNNING + 1] >= limit:
        return -1
    if have_0 and have_1:
        return 1 if s.ready[1, 0, st.Q_ORDER] < s.ready[0, 0, st.Q_ORDER] else 0
    if have_1:
        return 1
    return 0 if have_0 else -1


@jit
def admit_all(model: Model, s: State) -> None:
    """Admit ready jobs while tokens last."""
    klass = next_class(s)
    while klass >= 0:
        admit(klass, model, s)
        klass = next_class(s)


@jit
def attempt_s(records: int, stage: int, busy: int, draw: float, model: Model) -> float:
    """Return the time of one attempt of a task, given a uniform draw for its residual."""
    size = model.stage[stage, mod.RESIDUAL_SIZE]
    residual = model.residual[model.stage[stage, mod.RESIDUAL] + int(draw * size)]
    cost = model.cost[stage]
    compute = (cost[mod.FIXED] + cost[mod.PER_RECORD] * records) * residual
    return cost[mod.WAIT] + compute * model.slowdown[stage, busy]


@jit
def start_task(klass: int, i: int, model: Model, s: State) -> None:
    """Start the next task of the i-th task set of a class; a failed attempt is repeated at once."""
    whole = s.whole
    place = s.task_set[klass, i, st.Q_PLACE]
    batch = place >> model.stage_bits
    stage = place - (batch << model.stage_bits)
    row = s.stage[place]
    task = row[st.S_NEXT_TASK]
    row[st.S_NEXT_TASK] = task + 1
    row[st.S_RUNNING] += 1
    row[st.S_UNSTARTED] -= 1
    extra = row[st.S_EXTRA]
    first = s.batch[batch, st.B_FIRST_RECORD] + task * row[st.S_BASE] + min(task, extra)
    records = row[st.S_BASE] + (1 if task < extra else 0)
    whole[st.BUSY + klass] += 1
    whole[st.QUEUED + klass] -= 1
    busy = whole[st.BUSY] + whole[st.BUSY + 1]
    key = whole[st.KEY]
    took = attempt_s(records, stage, busy, uniform(key, stage, first, NOISE), model)
    attempts = 1
    fails = 0
    risk = model.cost[stage, mod.FAILURE]
    if risk > 0.0 and uniform(key, stage, first, FAILS) < risk:
        took += attempt_s(records, stage, busy, uniform(key, stage, first, NOISE_RETRY), model)
        attempts = 2
        fails = 1 if uniform(key, stage, first, FAILS_RETRY) < risk else 0
    s.batch[batch, st.B_TASKS] += attempts
    s.batch_real[batch, st.B_BUSY_S + klass] += took
    number = whole[st.LAUNCHES]
    whole[st.LAUNCHES] = number + 1
    heap_key = (number << KEY_SHIFT) | (place << 1) | fails
    push_task(whole, s.heap_s, s.heap_key, s.real[st.NOW] + took, heap_key)
    if row[st.S_UNSTARTED] == 0:
        remove_row(s.task_set[klass], whole[st.TASK_SETS + klass], i)
        whole[st.TASK_SETS + klass] -= 1


@jit
def pick_task_set(klass: int, policy: int, s: State) -> int:
    """Return the row of the task set that a pool serves next: first, or fewest running tasks."""
    if policy != FAIR:
        return 0
    best = 0
    rows = s.task_set[klass]
    fewest = s.stage[rows[0, st.Q_PLACE], st.S_RUNNING]
    for i in range(1, s.whole[st.TASK_SETS + klass]):
        running = s.stage[rows[i, st.Q_PLACE], st.S_RUNNING]
        if running < fewest:
            best = i
            fewest = running
    return best


@jit
def soft_class(s: State) -> int:
    """Return the class whose pool is furthest below its weight (both have task sets)."""
    share = s.real[st.SHARE]
    if share == 0.0:
        return 1
    if share == 1.0:
        return 0
    if s.whole[st.BUSY + 1] * share <= s.whole[st.BUSY] * (1.0 - share):
        return 1
    return 0


@jit
def single_queue(policy: int, s: State) -> tuple[int, int]:
    """Return class and row of the task set that one common queue serves next."""
    first = pick_task_set(0, policy, s)
    second = pick_task_set(1, policy, s)
    a = s.task_set[0, first]
    b = s.task_set[1, second]
    if policy == FAIR:
        running_a = s.stage[a[st.Q_PLACE], st.S_RUNNING]
        running_b = s.stage[b[st.Q_PLACE], st.S_RUNNING]
        if running_a != running_b:
            return (0, first) if running_a < running_b else (1, second)
    return (0, first) if a[st.Q_ORDER] < b[st.Q_ORDER] else (1, second)


@jit
def serve_next(s: State) -> tuple[int, int]:
    """Return class and row of the task set that gets the next slot; class -1 if none may."""
    whole = s.whole
    pools = whole[st.POOLS]
    have_0 = whole[st.TASK_SETS] > 0
    have_1 = whole[st.TASK_SETS + 1] > 0
    if pools == HARD:
        have_0 = have_0 and whole[st.BUSY] < whole[st.TARGET]
        have_1 = have_1 and whole[st.BUSY + 1] < whole[st.TARGET + 1]
    if not (have_0 or have_1):
        return -1, 0
    both = have_0 and have_1
    if both and pools == SINGLE:
        return single_queue(whole[st.POLICY], s)
    klass = soft_class(s) if both and pools == SOFT else int(have_1)
    policy = whole[st.POLICY] if pools == SINGLE else whole[st.POLICY + klass]
    return klass, pick_task_set(klass, policy, s)


@jit
def fill_slots(slots: int, model: Model, s: State) -> None:
    """Start tasks while a slot is free for one."""
    while s.whole[st.BUSY] + s.whole[st.BUSY + 1] < slots:
        klass, i = serve_next(s)
        if klass < 0:
            return
        start_task(klass, i, model, s)
