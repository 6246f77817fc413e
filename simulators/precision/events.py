"""The compiled rules of one simulated server: serve a batch, form the next one, check in shadow.

Order within a step: the plan is taken over; the batch is served; its checks are queued; requests
that come too late are dropped; an idle server jumps to the next arrival; the next batch is formed;
the checks that are known by then enter the window; the signals are written.
"""

from __future__ import annotations

import math
from typing import Any

import numba as nb

from simulators.arrived import Arrived, arrival_time, arrived_until, unsigned
from simulators.compiled import inner
from simulators.noise import uniform
from simulators.precision.model import (
    AGREES_BIT,
    CORRECT_BIT,
    SAMPLE_STREAM,
    SERVICE_STREAM,
    Model,
)
from simulators.precision.profile import MARGIN_STEPS
from simulators.precision.state import State

_SAMPLE, _SERVICE = int(SAMPLE_STREAM), int(SERVICE_STREAM)
_MARGIN_MASK = 255
_FIRST_PROPERTY = 18  # column of the first property; the engine asserts it


@inner
def assignment_of(first: int, m: Model, s: State) -> Any:
    """Return the assignment in the plan's columns from `first` on."""
    index = nb.int64(0)
    for k in range(m.levels.shape[1]):
        index = index * m.n_levels + nb.int64(s.plan[unsigned(first + k)])
    return index


@inner
def mark_escalated(assignment: int, m: Model, s: State) -> Any:
    """Mark the requests of the batch that will be run again; return their number."""
    threshold = s.plan[unsigned(m.levels.shape[1])] * MARGIN_STEPS
    marked = nb.int64(0)
    for i in range(s.server[0].batch):
        r = s.request[unsigned(i)]
        outcome = m.outcome[unsigned(r.condition), unsigned(assignment), unsigned(r.sample)]
        again = nb.float64(outcome & _MARGIN_MASK) < threshold
        r.escalated = again
        marked += again
    return marked


@inner
def pass_s(assignment: int, requests: int, draw: int, m: Model, s: State) -> Any:
    """Run one pass of the batch; return how long it takes, seconds."""
    server = s.server[0]
    b = unsigned(m.bucket_of[unsigned(requests)])
    cell = uniform(server.key, _SERVICE, server.batches, draw) * m.residual.shape[1]
    time_s = m.base_s[unsigned(assignment), b] * m.residual[b, unsigned(nb.int64(cell))]
    if assignment != server.ran:
        time_s += m.switch_s[b]
        server.ran = assignment
    return time_s


@inner
def serve(switched: int, m: Model, s: State) -> None:
    """Serve the batch under the plan in force; write its report and its part of the signals."""
    server, report = s.server[0], s.report
    n_stages = m.levels.shape[1]
    assignment = assignment_of(0, m, s)
    again, escalated = assignment, nb.int64(0)
    if s.plan[unsigned(n_stages)] > 0.0:
        again = assignment_of(n_stages + 1, m, s)
        if again != assignment:
            escalated = mark_escalated(assignment, m, s)
    service_s = m.decision_s[unsigned(m.bucket_of[unsigned(server.batch)])]
    service_s += pass_s(assignment, server.batch, 0, m, s)
    if escalated > 0:
        service_s += pass_s(again, escalated, 1, m, s)
    else:
        again = assignment  # no request is marked
    report[0] = server.batches
    report[1] = server.version
    report[2] = server.batch
    report[3] = server.head
    report[7] = server.now_s
    report[9] = escalated
    report[12] = switched
    server.now_s += service_s
    report[8] = server.now_s
    answer(assignment, again, m, s)
    clip_rates(assignment, m, s)
    s.signals[9] = service_s
    s.signals[10] = server.batch
    s.signals[13] = escalated / server.batch
    server.busy_s += service_s
    server.batches += 1
    server.head += server.batch
    server.served += server.batch


@inner
def answer(assignment: int, again: int, m: Model, s: State) -> None:
    """Look up the answers that are there now: marked requests have those of the second pass."""
    server, report = s.server[0], s.report
    n, end_s = server.batch, server.now_s
    margin, low, late = nb.int64(0), nb.int64(0), nb.int64(0)
    correct, in_time, checked = nb.int64(0), nb.int64(0), nb.int64(0)
    disagrees, check_condition = nb.uint64(0), nb.int64(0)
    arrival_sum = 0.0
    for i in range(n):
        r = s.request[unsigned(i)]
        outcome = m.outcome[unsigned(r.condition), unsigned(assignment), unsigned(r.sample)]
        own = nb.int64(outcome & _MARGIN_MASK)
        margin += own
        low += nb.float64(own) < m.low_margin
        if again != assignment and r.escalated:
            outcome = m.outcome[unsigned(r.condition), unsigned(again), unsigned(r.sample)]
        right = (nb.int64(outcome) >> CORRECT_BIT) & 1
        over = nb.int64(end_s - r.arrival_s > m.deadline_s)
        late += over
        correct += right
        in_time += right & (1 - over)
        arrival_sum += r.arrival_s
        if r.checked:
            differs = nb.uint64(1 - ((nb.int64(outcome) >> AGREES_BIT) & 1))
            disagrees |= differs << nb.uint64(checked)
            checked += 1
            check_condition = nb.int64(r.condition)
    if checked > 0:
        queue_checks(end_s + m.shadow_delay_s, disagrees, checked, assignment, check_condition, s)
    server.late += late
    s.signals[11] = margin / (n * MARGIN_STEPS)
    s.signals[12] = low / n
    report[4] = s.request[0].arrival_s
    report[5] = arrival_sum / n
    report[6] = s.request[unsigned(n - 1)].arrival_s
    report[10] = late
    report[13] = correct
    report[14] = in_time
    report[15] = s.request[0].condition


@inner
def queue_checks(
    ready_s: float, disagrees: int, count: int, assignment: int, condition: int, s: State
) -> None:
    """Put the checks of a batch in the queue, or skip them if it is full."""
    server = s.server[0]
    if server.pending == len(s.pending):
        return
    place = server.pending_first + server.pending
    if place >= len(s.pending):
        place -= len(s.pending)
    entry = s.pending[unsigned(place)]
    entry.ready_s = ready_s
    entry.disagrees = disagrees
    entry.count = count
    entry.assignment = assignment
    entry.condition = condition
    server.pending += 1


@inner
def clip_rates(assignment: int, m: Model, s: State) -> None:
    """Write the clip rates of the batch: means over its requests, summed run by run."""
    n = s.server[0].batch
    first = nb.int64(_FIRST_PROPERTY) + m.properties.shape[2]
    for k in range(m.levels.shape[1]):
        s.signals[unsigned(first + k)] = 0.0
    i = nb.int64(0)
    while i < n:
        condition = s.request[unsigned(i)].condition
        run = i + 1
        # The schedule only moves forward: equal ends mean one condition in between or a stretch
        # shorter than a batch, which is looked at one by one.
        while run < n and s.request[unsigned(run)].condition == condition:
            run += 1
        share = (run - i) / n
        for k in range(m.levels.shape[1]):
            level = m.levels[unsigned(assignment), unsigned(k)]
            rate = m.clip_rate[unsigned(condition), unsigned(k), unsigned(level)]
            s.signals[unsigned(first + k)] += share * rate
        i = run


@inner
def planned_s(requests: int, m: Model, s: State) -> Any:
    """Return what a batch of so many requests takes under the plan in force, by means."""
    n_stages = m.levels.shape[1]
    assignment = assignment_of(0, m, s)
    time_s = m.base_s[unsigned(assignment), unsigned(m.bucket_of[unsigned(requests)])]
    if s.plan[unsigned(n_stages)] > 0.0:
        again = assignment_of(n_stages + 1, m, s)
        # As many as lately: share of the last batch.
        marked = nb.int64(s.signals[13] * requests + 0.5)
        if again != assignment and marked > 0:
            time_s += m.base_s[unsigned(again), unsigned(m.bucket_of[unsigned(marked)])]
    return time_s


@inner
def drop_late(arrived: Arrived, m: Model, s: State) -> Any:
    """Drop the waiting requests that cannot be answered in time; return their number."""
    server = s.server[0]
    count, _ = arrived_until(server.now_s, arrived)
    arrival_s, tick = arrival_time(server.head, server.tick, arrived)
    dropped = nb.int64(0)
    while server.now_s > arrival_s:
        left_s = m.deadline_s - (server.now_s - arrival_s)
        if left_s > 0.0:
            n = min(max(count - server.head, 1), m.max_batch)
            if not m.drops_late or left_s >= planned_s(n, m, s):
                break
        dropped += 1
        server.head += 1
        arrival_s, tick = arrival_time(server.head, tick, arrived)
    server.tick = tick
    server.dropped += dropped
    return dropped


@inner
def form_batch(arrived: Arrived, m: Model, s: State) -> Any:
    """Drop what comes too late, wait for a request, form the next batch; return the drops."""
    server = s.server[0]
    dropped = drop_late(arrived, m, s) if m.drops else nb.int64(0)
    arrival_s, tick = arrival_time(server.head, server.tick, arrived)
    server.tick = tick
    if arrival_s == math.inf:
        end_s = (len(arrived.before) - 1) * arrived.tick_s
        server.now_s = max(server.now_s, end_s)
        server.batch = 0
        waiting: Any = nb.int64(0)
        slack_s = m.deadline_s
    else:
        server.now_s = max(server.now_s, arrival_s)
        count, _ = arrived_until(server.now_s, arrived)
        waiting = max(count - server.head, 1)
        server.batch = min(waiting, m.max_batch)
        slack_s = m.deadline_s - (server.now_s - arrival_s)
        draw_requests(arrived, m, s)
        mean_properties(m, s)
    out = s.signals
    out[0] = server.now_s
    out[1] = server.head + waiting
    out[2] = server.served
    out[3] = server.late
    out[4] = server.dropped
    out[5] = server.busy_s
    out[6] = waiting
    out[7] = server.batch
    out[8] = slack_s
    return dropped


@inner
def draw_requests(arrived: Arrived, m: Model, s: State) -> None:
    """Draw arrival, condition, sample and shadow check of each request of the batch."""
    server = s.server[0]
    tick, segment = server.tick, server.segment
    last_segment = len(s.segment_s) - 1
    n_samples = m.properties.shape[1]
    for i in range(server.batch):
        r = s.request[unsigned(i)]
        arrival_s, tick = arrival_time(server.head + i, tick, arrived)
        while segment < last_segment and s.segment_s[unsigned(segment + 1)] <= arrival_s:
            segment += 1
        if i == 0:
            server.segment = segment
        place = uniform(server.key, _SAMPLE, server.head + i, 0) * n_samples
        sample = nb.int64(place)
        r.arrival_s = arrival_s
        r.sample = sample
        r.condition = s.segment_condition[unsigned(segment)]
        # The fraction of the place is independent of its whole part, and uniform.
        r.checked = place - sample < m.shadow_fraction


@inner
def mean_properties(m: Model, s: State) -> None:
    """Write the mean input properties of the batch."""
    n = s.server[0].batch
    for f in range(m.properties.shape[2]):
        total = 0.0
        for i in range(n):
            r = s.request[unsigned(i)]
            total += m.properties[unsigned(r.condition), unsigned(r.sample), unsigned(f)]
        s.signals[unsigned(_FIRST_PROPERTY + f)] = total / n


@inner
def collect_checks(m: Model, s: State) -> None:
    """Let the checks that are known by now into the window; renew estimate and SQNR."""
    server = s.server[0]
    news = False
    while server.pending > 0:
        entry = s.pending[unsigned(server.pending_first)]
        if entry.ready_s > server.now_s:
            break
        for j in range(entry.count):
            push_check(nb.int64((entry.disagrees >> nb.uint64(j)) & nb.uint64(1)), s)
        first = nb.int64(_FIRST_PROPERTY) + m.properties.shape[2] + m.levels.shape[1]
        for k in range(m.levels.shape[1]):
            level = m.levels[unsigned(entry.assignment), unsigned(k)]
            sqnr_db = m.sqnr_db[unsigned(entry.condition), unsigned(k), unsigned(level)]
            s.signals[unsigned(first + k)] = sqnr_db
        server.pending_first += 1
        if server.pending_first == len(s.pending):
            server.pending_first = 0
        server.pending -= 1
        news = True
    if news:
        estimate(m, s)


@inner
def push_check(differs: int, s: State) -> None:
    """Put one check in the window, in the place of the oldest if it is full."""
    server = s.server[0]
    place = server.window_next
    if server.window_size == len(s.window):
        server.window_sum -= nb.int64(s.window[unsigned(place)])
    else:
        server.window_size += 1
    s.window[unsigned(place)] = differs
    server.window_sum += differs
    server.window_next = place + 1 if place + 1 < len(s.window) else nb.int64(0)


@inner
def estimate(m: Model, s: State) -> None:
    """Write share and Wilson interval as `runtime.precision.snapshot.wilson_interval` does."""
    server, out, z = s.server[0], s.signals, m.wilson_z
    n = server.window_size
    share, z2n = server.window_sum / n, z * z / n
    half = z * math.sqrt(share * (1.0 - share) / n + z2n / (4.0 * n))
    centre, scale = share + 0.5 * z2n, 1.0 / (1.0 + z2n)
    out[14] = n
    out[15] = share
    out[16] = max((centre - half) * scale, 0.0)
    out[17] = min((centre + half) * scale, 1.0)
