from __future__ import annotations

import heapq
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.application import Application, Job, Stage, task_slice
from simulators.cluster.bounds import (
    ClassWork,
    balanced_share,
    batch_work,
    capacity_per_s,
    critical_path_s,
    makespan_bounds,
    pool_load,
    pooled_lower_bound_s,
    work_per_record,
)
from simulators.cluster.profile import Profile, StageCost

# Records of a batch of 100: a takes 4 tasks (25 each), b 1, c's stages 2 (50 each) and 1.
APPLICATION = Application(
    "hand",
    (
        Job("a", (Stage("main", records_per_task=25),)),
        Job("b", (Stage("main", max_tasks=1),)),
        Job("c", (Stage("x", records_per_task=50), Stage("y", max_tasks=1, selectivity=0.1))),
    ),
    edges=(("b", "c"),),
)
COSTS = {
    ("a", "main"): StageCost(wait_s=0.5, fixed_s=0.25, per_record_s=0.01),
    ("b", "main"): StageCost(wait_s=0.0, fixed_s=1.0, per_record_s=0.02),
    ("c", "x"): StageCost(wait_s=0.0, fixed_s=0.5, per_record_s=0.01),
    ("c", "y"): StageCost(wait_s=0.0, fixed_s=0.0, per_record_s=0.1),
}
PROFILE = Profile("hand", COSTS, slots=4, cores=4)


def test_work_is_tasks_times_their_time() -> None:
    # a: 4 * (0.5 + 0.25 + 0.25), b: 1 + 2, c: 2 * (0.5 + 0.5) + 10 * 0.1.
    assert batch_work(APPLICATION, PROFILE, 100) == pytest.approx((4.0 + 3.0, 3.0))
    assert work_per_record(APPLICATION, PROFILE, 100).total == pytest.approx(0.1)
    assert balanced_share(batch_work(APPLICATION, PROFILE, 100)) == pytest.approx(0.7)


def test_slowdown_acts_on_computing_only() -> None:
    slow = Profile(
        "hand",
        {k: StageCost(c.wait_s, c.fixed_s, c.per_record_s, slowdown=np.array([1, 1, 3.0]))
         for k, c in COSTS.items()},
        slots=4,
        cores=4,
    )  # fmt: skip
    work = batch_work(APPLICATION, slow, 100, busy=2)
    assert work == pytest.approx((4 * (0.5 + 3 * 0.5) + 3 * 3.0, 3 * 3.0))
    bounds = makespan_bounds(APPLICATION, slow, 100, slots=2)
    assert bounds.lower_s == pytest.approx(max(10.0 / 2, 5.0))
    assert bounds.upper_s == pytest.approx(26.0 / 2 + 0.5 * 15.0)


def test_critical_path_follows_jobs_and_stages() -> None:
    # b (3) then c: x (1), y (1).
    assert critical_path_s(APPLICATION, PROFILE, 100) == pytest.approx(5.0)
    branches = Application(
        "branches",
        (
            Job(
                "c",
                (
                    Stage("x", 50, parents=()),
                    Stage("y", max_tasks=1, selectivity=0.1, parents=()),
                    Stage("z", 50, parents=("x", "y")),
                ),
            ),
        ),
    )
    costs = {
        ("c", "x"): COSTS["c", "x"],
        ("c", "y"): COSTS["c", "y"],
        ("c", "z"): StageCost(2.0, 0.0, 0.0),
    }
    profile = Profile("branches", costs, 1, 1)
    assert critical_path_s(branches, profile, 100) == pytest.approx(1.0 + 2.0)
    # 101 records in 3 tasks: the largest has 34.
    assert critical_path_s(branches, profile, 101) == pytest.approx(max(0.5 + 0.34, 1.0) + 2.0)


def test_pool_loads_and_the_balanced_split() -> None:
    work = ClassWork(6.0, 2.0)
    assert pool_load(6.0, 3, 4.0) == pytest.approx(0.5)
    share = balanced_share(work)
    assert pool_load(6.0, round(8 * share), 1.0) == pool_load(2.0, 8 - round(8 * share), 1.0)
    assert pool_load(1.0, 0, 1.0) == math.inf
    assert pool_load(0.0, 0, 1.0) == 0.0
    assert pooled_lower_bound_s(work, (6, 2), 0.25) == pytest.approx(1.0)
    assert pooled_lower_bound_s(work, (4, 4), 0.25) == pytest.approx(1.5)
    assert pooled_lower_bound_s(work, (8, 0), 0.25) == math.inf
    assert pooled_lower_bound_s(ClassWork(6.0, 0.0), (8, 0), 9.0) == 9.0
    with pytest.raises(ValueError, match="expected some above 0"):
        balanced_share(ClassWork(0.0, 0.0))


def test_capacity_counts_slots_and_stateful_jobs() -> None:
    free = Application("s", (Job("a", (Stage("main", records_per_task=10, max_tasks=10**9),)),))
    profile = Profile("s", {("a", "main"): StageCost(0.4, 0.0, 0.01)}, 8, 8)
    # A full task of 10 records takes 0.5 s, so 8 slots do 160 records a second, and no more.
    assert capacity_per_s(free, profile, 8, 2.0) == pytest.approx(160.0)
    assert capacity_per_s(free, profile, 16, 2.0) == pytest.approx(320.0)
    # A stateful single-task job: 0.4 + 0.01 n <= 2.
    job = Job("a", (Stage("main", max_tasks=1),), stateful=True)
    assert capacity_per_s(Application("s", (job,)), profile, 8, 2.0) == pytest.approx(160 / 2.0)
    # Too short for a single record, and no cost per record.
    assert capacity_per_s(Application("s", (job,)), profile, 8, 0.1) == 0.0
    flat = Profile("s", {("a", "main"): StageCost(0.4, 0.0, 0.0)}, 8, 8)
    assert capacity_per_s(Application("s", (job,)), flat, 8, 1.0) == math.inf


def test_capacity_takes_the_best_number_of_busy_slots() -> None:
    application = Application(
        "s", (Job("a", (Stage("main", records_per_task=1, max_tasks=10**9),)),)
    )
    # Beyond 2 busy slots computing takes 4 times as long: more slots are of no use.
    cost = StageCost(0.0, 0.1, 0.0, slowdown=np.array([1.0, 1.0, 1.0, 4.0]))
    assert capacity_per_s(application, Profile("s", {("a", "main"): cost}, 4, 2), 4, 1.0) == 20.0


def test_impossible_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="batch_records is 0"):
        batch_work(APPLICATION, PROFILE, 0)
    with pytest.raises(ValueError, match="slots or busy slots 0"):
        makespan_bounds(APPLICATION, PROFILE, 10, 0)
    with pytest.raises(ValueError, match="batch_interval_s is 0"):
        capacity_per_s(APPLICATION, PROFILE, 2, 0.0)
    with pytest.raises(ValueError, match="has no cost for stage 'main' of job 'b'"):
        batch_work(APPLICATION, Profile("p", {("a", "main"): COSTS["a", "main"]}, 1, 1), 10)


Node = tuple[int, int]


def _stage_graph(application: Application) -> dict[Node, set[Node]]:
    """Stages that each stage waits for, those of preceding jobs included."""
    graph: dict[Node, set[Node]] = {}
    for j, job in enumerate(application.jobs):
        before = {
            (p, s)
            for p in application.predecessors[j]
            for s in range(len(application.jobs[p].stages))
        }
        for s, parents in enumerate(job.stage_parents()):
            graph[j, s] = before | {(j, p) for p in parents}
    return graph


def _list_schedule(
    application: Application, profile: Profile, records: int, slots: int, rng: np.random.Generator
) -> float:
    """Makespan of a lone batch when any runnable task may start whenever a slot is free."""
    waits = _stage_graph(application)
    stage = {(j, s): application.jobs[j].stages[s] for j, s in waits}
    waiting = {node: stage[node].task_count(records) for node in waits}
    unfinished = dict(waiting)
    now, running = 0.0, []
    while any(unfinished.values()):
        runnable = [n for n in waits if waiting[n] and not any(unfinished[p] for p in waits[n])]
        if runnable and len(running) < slots:
            node = runnable[rng.integers(len(runnable))]
            waiting[node] -= 1
            total, tasks = stage[node].stage_records(records), stage[node].task_count(records)
            _, own = task_slice(total, tasks, waiting[node])
            cost = profile.costs[application.jobs[node[0]].name, stage[node].name]
            heapq.heappush(running, (now + cost.mean_task_s(own, len(running) + 1), node))
        else:
            now, node = heapq.heappop(running)
            unfinished[node] -= 1
    return now


@given(seed=st.integers(0, 2**32 - 1), slots=st.integers(1, 6), records=st.integers(1, 300))
def test_every_list_schedule_keeps_the_makespan_bounds(seed: int, slots: int, records: int) -> None:
    rng = np.random.default_rng(seed)
    jobs = tuple(
        Job(
            f"j{j}",
            tuple(
                Stage(f"s{s}", int(rng.integers(5, 80)), int(rng.integers(1, 9)))
                for s in range(rng.integers(1, 4))
            ),
        )
        for j in range(rng.integers(1, 6))
    )
    edges = tuple(
        (jobs[a].name, jobs[b].name)
        for a in range(len(jobs))
        for b in range(a + 1, len(jobs))
        if rng.random() < 0.3
    )
    application = Application("random", jobs, edges)
    costs = {
        (job.name, stage.name): StageCost(
            rng.random(),
            rng.random(),
            0.01 * rng.random(),
            slowdown=np.concatenate([[1.0], 1.0 + np.cumsum(0.3 * rng.random(4))]),
        )
        for job in jobs
        for stage in job.stages
    }
    profile = Profile("random", costs, slots, slots)
    makespan = _list_schedule(application, profile, records, slots, rng)
    bounds = makespan_bounds(application, profile, records, slots)
    assert bounds.lower_s <= makespan * (1 + 1e-12)
    assert makespan <= bounds.upper_s * (1 + 1e-12)
