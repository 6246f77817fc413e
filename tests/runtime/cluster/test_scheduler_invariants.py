"""What must hold whatever the application, the plans, the task times and the failures are."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.application import Application, Classification, Job, Stage
from runtime.cluster.runs import Outcome, Task
from runtime.cluster.scheduler import Scheduler
from runtime.cluster.source import Source
from runtime.plan import Plan, Policy, Pools, hard_slots

SLOTS = st.integers(1, 6)


@st.composite
def applications(draw: st.DrawFn) -> Application:
    n = draw(st.integers(1, 5))
    jobs = []
    for j in range(n):
        stages = tuple(
            Stage(
                f"s{s}",
                records_per_task=draw(st.integers(1, 6)),
                max_tasks=draw(st.integers(1, 5)),
                selectivity=draw(st.sampled_from([0.2, 1.0, 1.5])),
                parents=draw(st.sampled_from([None, ()])),
            )
            for s in range(draw(st.integers(1, 3)))
        )
        jobs.append(Job(f"j{j}", stages, stateful=draw(st.booleans())))
    pairs = [(f"j{a}", f"j{b}") for b in range(n) for a in range(b)]
    edges = tuple(pair for pair in pairs if draw(st.integers(0, 2)) == 0)
    return Application("random", tuple(jobs), edges)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    return Plan(
        pools=draw(st.sampled_from(Pools)),
        share=draw(st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0])),
        independent_policy=draw(st.sampled_from(Policy)),
        dependent_policy=draw(st.sampled_from(Policy)),
        parallelism=draw(st.integers(1, 6)),
        batch_interval_s=draw(st.sampled_from([0.4, 1.0, 2.5])),
        idle_batches=draw(st.sampled_from([0, 0, 1, 3])),
        per_pool_parallelism=draw(st.booleans()),
    )


class Watch:
    """Checks every event of a run of a scheduler."""

    def __init__(self, app: Application, slots: int) -> None:
        self.app, self.slots = app, slots
        self.busy = (0, 0)
        self.jobs = (0, 0)

    def __call__(self, scheduler: Scheduler) -> None:
        plan, busy, jobs = scheduler.plan, scheduler.busy_slots, scheduler.running_jobs
        assert sum(busy) == scheduler.running_tasks <= self.slots
        # A cap may be exceeded only by what was running already: nothing is killed (rules 8, 13).
        if plan.per_pool_parallelism:
            for now, before in zip(jobs, self.jobs, strict=True):
                assert now <= max(plan.parallelism, before)
        else:
            assert sum(jobs) <= max(plan.parallelism, sum(self.jobs))
        if plan.pools is Pools.HARD:  # rules 3, 12
            targets = hard_slots(plan.share, self.slots, *self.app.class_counts)
            for now, before, target in zip(busy, self.busy, targets, strict=True):
                assert now <= max(target, before)
        elif sum(busy) < self.slots:  # rule 15
            assert scheduler.queued_tasks == (0, 0)
        self.busy, self.jobs = busy, jobs


@st.composite
def runs(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "app": draw(applications()),
        "slots": draw(SLOTS),
        "counts": draw(st.lists(st.integers(0, 8), min_size=1, max_size=12)),
        "plans": draw(st.lists(plans(), min_size=1, max_size=5)),
        "max_open": draw(st.integers(1, 4)),
        "seed": draw(st.integers(0, 2**32 - 1)),
        "failure": draw(st.sampled_from([0.0, 0.0, 0.1])),
    }


def execute(run: dict[str, Any], virtual_time: Any, attempted: Any) -> tuple[Any, list[Any]]:
    """Change the plan every 1.7 s, then let everything drain; return driver and snapshots."""
    rng = np.random.default_rng(run["seed"])

    def attempt(task: Task) -> Any:
        failed = bool(rng.random() < run["failure"])
        return attempted(float(rng.exponential(0.4)) + 0.01, 1 + failed, failed)

    source = Source(np.array(run["counts"]), 1.0)
    scheduler = Scheduler(run["app"], source, run["slots"], run["plans"][0], run["max_open"])
    time = virtual_time(scheduler, attempt, on_event=Watch(run["app"], run["slots"]))
    snapshots = []
    for i, plan in enumerate(run["plans"][1:], start=1):
        snapshots.append(time.run(1.7 * i))
        time.apply(plan)
    # Many short tasks on one slot may take long, but not for ever.
    snapshots.append(time.run(5000.0))
    return time, snapshots


@settings(max_examples=150, deadline=None)
@given(run=runs())
def test_invariants(run: dict[str, Any], virtual_time: Any, attempted: Any) -> None:
    time, snapshots = execute(run, virtual_time, attempted)
    app, total = run["app"], sum(run["counts"])
    assert time.scheduler.empty
    # Batching conserves records, and none is lost or doubled (rule 10).
    reports = sorted(time.reports, key=lambda report: report.batch)
    assert [report.batch for report in reports] == list(range(len(reports)))
    assert sum(report.records for report in reports) == total
    firsts = np.cumsum([0] + [report.records for report in reports])[:-1]
    assert [report.first_record for report in reports] == firsts.tolist()
    for snapshot in snapshots:
        assert snapshot["records_in"] == sum(
            snapshot[f"records_{where}"] for where in ("out", "failed", "pending", "uncut")
        )
    # Every task that started ended, once (rule 12).
    assert Counter(t.number for t in time.starts) == Counter(t.number for _, t in time.ends)
    check_tasks(app, time, {report.batch: report for report in reports})
    check_order(app, time)


def check_tasks(app: Application, time: Any, reports: dict[int, Any]) -> None:
    """Jobs that ended well ran every task of theirs once, on all their records."""
    done = Counter((t.batch, t.job, t.stage, t.index) for t in time.starts)
    records = Counter[tuple[int, int, int]]()
    for task in time.starts:
        records[task.batch, task.job, task.stage] += task.records
    assert max(done.values(), default=1) == 1
    for _, end in time.job_ends:
        if end.outcome is not Outcome.SUCCEEDED:
            assert reports[end.batch].failed
            continue
        for s, stage in enumerate(app.jobs[end.job].stages):
            size = reports[end.batch].records
            assert records[end.batch, end.job, s] == stage.stage_records(size)
            assert all(done[end.batch, end.job, s, i] == 1 for i in range(stage.task_count(size)))


def check_order(app: Application, time: Any) -> None:
    """Jobs start after those they wait for (rules 6, 7), stages after their parents."""
    ended = {(e.batch, e.job): (s, e.outcome) for s, e in time.job_ends}
    stage_end: dict[tuple[int, int, int], float] = {}
    for end_s, task in time.ends:
        key = task.batch, task.job, task.stage
        stage_end[key] = max(end_s, stage_end.get(key, 0.0))
    for task in time.starts:
        for before in app.predecessors[task.job]:
            end_s, outcome = ended[task.batch, before]
            assert end_s <= task.start_s
            assert outcome is Outcome.SUCCEEDED
        if app.jobs[task.job].stateful and task.batch > 0:
            assert ended[task.batch - 1, task.job][0] <= task.start_s
        for parent in app.jobs[task.job].stage_parents()[task.stage]:
            assert stage_end[task.batch, task.job, parent] <= task.start_s


@settings(max_examples=60, deadline=None)
@given(run=runs())
def test_the_books_balance(run: dict[str, Any], virtual_time: Any, attempted: Any) -> None:
    """Little's law and the slot-seconds, as exact identities over the whole run."""
    time, snapshots = execute(run, virtual_time, attempted)
    waited_s = sum(r.records * r.latency_s for r in time.reports)
    assert np.isclose(sum(s["system_record_s"] for s in snapshots), waited_s, rtol=1e-9, atol=1e-6)
    for pool in ("independent", "dependent"):
        busy_s = sum(s[f"busy_{pool}_s"] for s in snapshots)
        assert np.isclose(busy_s, sum(getattr(r, f"busy_{pool}_s") for r in time.reports))
    parts_s = sum(s[f"{p}_record_s"] for s in snapshots for p in PARTS)
    assert np.isclose(parts_s, waited_s, rtol=1e-9, atol=1e-6)


PARTS = ("accumulation", "queueing", "processing")


@settings(max_examples=30, deadline=None)
@given(run=runs())
def test_replaying_the_plans_reproduces_the_schedule(
    run: dict[str, Any], virtual_time: Any, attempted: Any
) -> None:
    first, _ = execute(run, virtual_time, attempted)
    again, _ = execute(run, virtual_time, attempted)
    assert first.order() == again.order()
    assert [r.to_row().tolist() for r in first.reports] == [
        r.to_row().tolist() for r in again.reports
    ]


def starts_by_pool(
    counts: list[int], policies: tuple[Policy, Policy], virtual_time: Any, attempted: Any
) -> tuple[list[Any], list[Any]]:
    """Schedule three side jobs and a fan of four jobs (any-edge: no edge between the pools)."""
    stage = Stage("main", 1)
    side = tuple(Job(f"i{k}", (stage,)) for k in range(3))
    fan = (Job("r", (stage,)), *(Job(f"d{k}", (stage,)) for k in range(3)))
    edges = tuple(("r", f"d{k}") for k in range(3))
    app = Application("app", side + fan, edges, Classification.ANY_EDGE)
    plan = Plan(
        pools=Pools.HARD,
        share=0.5,
        parallelism=9,
        per_pool_parallelism=True,
        independent_policy=policies[0],
        dependent_policy=policies[1],
        batch_interval_s=1.0,
    )
    scheduler = Scheduler(app, Source(np.array(counts), 1.0), 4, plan)
    time = virtual_time(scheduler, lambda t: attempted(0.3 + 0.1 * (t.index % 3)))
    time.run(1000.0)
    return (
        [start for start in time.order() if start[2] < 3],
        [start for start in time.order() if start[2] >= 3],
    )


@settings(max_examples=40, deadline=None)
@given(counts=st.lists(st.integers(2, 8), min_size=2, max_size=8))
def test_a_policy_leaves_the_other_hard_pool_alone(
    counts: list[int], virtual_time: Any, attempted: Any
) -> None:
    """Rule 5: swapping one pool's policy changes its own trace only."""
    support = virtual_time, attempted
    fifo = starts_by_pool(counts, (Policy.FIFO, Policy.FIFO), *support)
    other = starts_by_pool(counts, (Policy.FIFO, Policy.FAIR), *support)
    assert other[0] == fifo[0]
    assert other[1] != fifo[1]
    other = starts_by_pool(counts, (Policy.FAIR, Policy.FIFO), *support)
    assert other[0] != fifo[0]
    assert other[1] == fifo[1]
