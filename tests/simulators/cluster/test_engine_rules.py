"""The rules of pools, parallelism, dependencies and batches, watched at every event.

The oracle is watched; the engine equals it bit by bit (test_engine_equals_reference.py).
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.application import Application, Classification, Job, Stage
from runtime.plan import Plan, Policy, Pools, hard_slots
from runtime.snapshot import SIGNAL_INDEX, Report
from simulators.cluster.engine import ClusterEngine
from simulators.cluster.reference import ReferenceCluster
from tests.simulators.cluster.clusters import (
    Cluster,
    clusters,
    constant_profile,
    plans,
    run_both,
)

PERIOD_S, TICK_S = 1.5, 0.5
rates = st.lists(st.integers(0, 60), min_size=1, max_size=8)
sequences = st.lists(plans, min_size=1, max_size=6)


class Watch:
    """Checks the rules whenever slots have been filled."""

    def __init__(self, cluster: ReferenceCluster) -> None:
        self.cluster = cluster
        self.busy, self.running = [0, 0], [0, 0]  # as of the event before
        cluster.on_event = self.check

    def check(self) -> None:
        self.check_slots()
        self.check_parallelism()
        self.check_order()
        cut = sum(batch.records for batch in self.cluster.open)
        gone = self.cluster.out_records + self.cluster.failed_records
        assert cut + gone == self.cluster.cut_records  # rule 10: nothing lost, nothing twice

    def check_slots(self) -> None:
        cluster, plan = self.cluster, self.cluster.plan
        busy = list(cluster.busy)
        sets = [cluster.task_sets(False), cluster.task_sets(True)]
        running = [0, 0]
        for _, _, stage, _ in cluster.running:
            running[stage.job.dependent] += 1
        assert running == busy  # rule 12: every started task is running until its own end
        assert sum(busy) <= cluster.slots
        if plan.pools is Pools.HARD:
            n_classes = cluster.application.class_counts
            targets = hard_slots(plan.share, cluster.slots, *n_classes)
            if cluster.slots > 1 or 0 in n_classes:
                assert sum(targets) == cluster.slots  # rule 3: disjoint, and together all
            for klass in range(2):  # rule 12: beyond its target a pool only drains
                assert busy[klass] <= max(targets[klass], self.busy[klass])
                free = busy[klass] < targets[klass] and sum(busy) < cluster.slots
                assert not (free and sets[klass])
        elif sum(busy) < cluster.slots:
            assert sets == [[], []]  # rule 15: no slot idles while a task could run
        self.busy = busy

    def check_parallelism(self) -> None:
        plan = self.cluster.plan
        running = [0, 0]
        for batch in self.cluster.open:
            for run in batch.jobs:
                running[run.dependent] += run.phase == "admitted"
        if plan.per_pool_parallelism:  # rules 8 and 13
            for klass in range(2):
                assert running[klass] <= max(plan.parallelism, self.running[klass])
        else:
            assert sum(running) <= max(plan.parallelism, sum(self.running))
        self.running = running

    def check_order(self) -> None:
        application = self.cluster.application
        for batch in self.cluster.open:
            for run, waits in zip(batch.jobs, application.predecessors, strict=True):
                if run.phase == "admitted":  # rule 6
                    assert all(batch.jobs[p].phase == "ended" for p in waits)
        for older, younger in pairwise(self.cluster.open):
            for a, b in zip(older.jobs, younger.jobs, strict=True):
                if a.job.stateful and b.phase == "admitted":  # rule 7, for all older ones in turn
                    assert a.phase == "ended"


def run_watched(
    cluster: Cluster, sequence: list[Plan], counts: np.ndarray, seed: int
) -> tuple[ReferenceCluster, list[Report], float]:
    """Run a plan per period, then the last plan until everything has left."""
    oracle = ReferenceCluster(*cluster, max_open=4)
    oracle.reset(seed, counts, TICK_S, sequence[0])
    Watch(oracle)
    reports: list[Report] = []
    area, until_s = 0.0, 0.0
    while until_s < PERIOD_S * len(sequence) or oracle.cut_records < sum(counts) or oracle.open:
        plan = sequence[min(round(until_s / PERIOD_S), len(sequence) - 1)]
        until_s += PERIOD_S
        seen = oracle.advance(plan, until_s)
        reports += seen.reports
        area += seen["system_record_s"]
        assert until_s < 5000.0, "the cluster does not drain"
    return oracle, reports, area


@settings(max_examples=60, deadline=None)
@given(cluster=clusters(max_slots=6), sequence=sequences, counts=rates, seed=st.integers(0, 2**63))
def test_rules_hold_at_every_event_and_littles_law(
    cluster: Cluster, sequence: list[Plan], counts: list[int], seed: int
) -> None:
    oracle, reports, area = run_watched(cluster, sequence, np.array(counts), seed)
    in_order = sorted(reports, key=lambda report: report.batch)
    assert [report.batch for report in in_order] == list(range(oracle.batches))
    first = 0
    for report in in_order:  # rule 10: every record is in exactly one batch
        assert report.first_record == first
        first += report.records
    assert first == sum(counts)
    versions = [report.plan_version for report in in_order]
    assert versions == sorted(versions)  # rule 11
    assert set(versions) <= set(range(oracle.version + 1))
    record_s = sum(report.records * report.latency_s for report in reports)
    assert area == pytest.approx(record_s, rel=1e-9, abs=1e-9)
    busy_s = sum(report.busy_independent_s + report.busy_dependent_s for report in reports)
    assert busy_s == pytest.approx(sum(task.end_s - task.start_s for task in oracle.task_log))


@settings(max_examples=30, deadline=None)
@given(cluster=clusters(), sequence=sequences, counts=rates, data=st.data())
def test_replayed_plans_give_the_same_trace_whatever_the_number_of_environments(
    cluster: Cluster, sequence: list[Plan], counts: list[int], data: st.DataObject
) -> None:
    n_envs = data.draw(st.integers(2, 5))
    seed = data.draw(st.integers(0, 2**32))
    keys = np.array([seed + 3 * e for e in range(n_envs)], dtype=np.uint64)
    all_counts = np.array([np.roll(counts, e) for e in range(n_envs)])
    offsets = data.draw(st.lists(st.integers(0, 5), min_size=n_envs, max_size=n_envs))

    def trace(envs: list[int]) -> list[np.ndarray]:
        engine = ClusterEngine(*cluster, len(envs), max_open=4, report_rows=2000)
        engine.reset(keys[envs], all_counts[envs], TICK_S, sequence[0])
        rows = []
        for k in range(len(sequence)):
            plan_rows = [sequence[(k + offsets[e]) % len(sequence)].to_row() for e in envs]
            engine.advance(np.stack(plan_rows), np.full(len(envs), (k + 1) * PERIOD_S))
            rows.append(engine.signals.copy())
        return rows

    together = trace(list(range(n_envs)))
    for e in range(n_envs):
        for alone, row in zip(trace([e]), together, strict=True):
            np.testing.assert_array_equal(alone[0], row[e])


def longest_path_s(oracle: ReferenceCluster) -> float:
    """Return the length of the critical path of the only batch, from its task log."""
    application = oracle.application
    stage_s: dict[int, float] = {}
    for task in oracle.task_log:
        stage_s[task.stage] = max(stage_s.get(task.stage, 0.0), task.end_s - task.start_s)
    ends: list[float] = []
    number = 0
    for position, job in enumerate(application.jobs):  # edges only lead to later jobs here
        start = max((ends[p] for p in application.predecessors[position]), default=0.0)
        own: list[float] = []
        for parents in job.stage_parents():
            own.append(max((own[p] for p in parents), default=0.0) + stage_s[number])
            number += 1
        ends.append(start + max(own))
    return max(ends)


@settings(max_examples=60, deadline=None)
@given(
    cluster=clusters(plain=True, max_slots=6),
    pools=st.sampled_from([Pools.SINGLE, Pools.SOFT]),
    policy=st.sampled_from(list(Policy)),
    share=st.floats(0.0, 1.0),
    records=st.integers(1, 200),
)
def test_makespan_lies_within_grahams_bounds(
    cluster: Cluster, pools: Pools, policy: Policy, share: float, records: int
) -> None:
    plan = Plan(pools, share, policy, policy, parallelism=5, batch_interval_s=1.0)
    oracle, reports, _ = run_both(cluster, [records], 1.0, plan, 2000.0)
    makespan_s = reports[0].end_s - reports[0].start_s
    work_s = reports[0].busy_independent_s + reports[0].busy_dependent_s
    path_s, slots = longest_path_s(oracle), cluster[2]
    assert makespan_s >= max(work_s / slots, path_s) * (1 - 1e-12)
    assert makespan_s <= (work_s / slots + (1 - 1 / slots) * path_s) * (1 + 1e-12)


@given(
    share=st.floats(0.0, 1.0),
    slots=st.integers(1, 50),
    independent=st.integers(0, 4),
    dependent=st.integers(0, 4),
)
@settings(max_examples=100, deadline=None)
def test_engine_divides_hard_pools_like_the_runtime(
    share: float, slots: int, independent: int, dependent: int
) -> None:
    if independent == 0:  # in-edge: the first job of a chain waits for nothing
        independent, dependent = 1, max(dependent, 1)
    names = [f"i{k}" for k in range(independent)] + [f"d{k}" for k in range(dependent)]
    edges = tuple((names[0], name) for name in names[independent:])
    jobs = tuple(Job(name, (Stage("m"),)) for name in names)
    application = Application("split", jobs, edges)
    assert application.class_counts == (independent, dependent)
    engine = ClusterEngine(application, constant_profile(application, 1.0), slots)
    plan = Plan(Pools.HARD, share)
    engine.reset(np.zeros(1, dtype=np.uint64), np.zeros((1, 1), dtype=np.int64), 1.0, plan)
    expected = hard_slots(share, slots, independent, dependent)
    assert tuple(engine.state.pool["target"][0]) == expected


def test_initial_share_by_the_number_of_jobs() -> None:
    assert hard_slots(3 / 4, 8, 3, 1) == (6, 2)  # rule 4
    assert hard_slots(0.0, 8, 0, 5) == (0, 8)
    assert hard_slots(0.5, 1, 2, 2) == (1, 1)


# Batches worked out by hand ---------------------------------------------------------------------


def jobs_of(tasks: dict[str, int], stateful: str = "") -> tuple[Job, ...]:
    """Return jobs of one stage with so many tasks for a batch of 12 records."""
    return tuple(
        Job(name, (Stage("m", records_per_task=1, max_tasks=n),), name in stateful)
        for name, n in tasks.items()
    )


def starts_of(oracle: ReferenceCluster) -> list[tuple[str, int, float]]:
    """Return (job, batch, start) of all tasks in the order of their starts."""
    jobs = oracle.application.jobs
    return [(jobs[task.job].name, task.batch, task.start_s) for task in oracle.task_log]


def simulate(
    application: Application,
    plan: Plan,
    slots: int,
    counts: list[int],
    task_s: float | dict[str, float] = 1.0,
) -> tuple[ReferenceCluster, list[Report], np.ndarray]:
    profile = constant_profile(application, task_s)
    return run_both((application, profile, slots), counts, 1.0, plan, 100.0)


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (Policy.FIFO, "a1 a1 a2 b2 b3 b3"),
        (Policy.FAIR, "a1 b1 a2 b2 a3 b3"),
    ],
)
def test_fifo_and_fair_in_one_queue(policy: Policy, expected: str) -> None:
    application = Application("two", jobs_of({"a": 3, "b": 3}))
    plan = Plan(independent_policy=policy, parallelism=2, batch_interval_s=1.0)
    oracle, reports, _ = simulate(application, plan, 2, [12])
    assert " ".join(f"{job}{start:g}" for job, _, start in starts_of(oracle)) == expected
    assert (reports[0].cut_s, reports[0].start_s, reports[0].end_s) == (1.0, 1.0, 4.0)
    assert reports[0].mean_arrival_s == pytest.approx(0.5)
    assert reports[0].tasks == 6


@pytest.mark.parametrize(
    ("pools", "expected", "end_s"),
    [
        # Two slots for a, one for the chain c -> d, which leaves a's slots idle at the end.
        (Pools.HARD, "c1 a1 a1 c2 a2 a2 d3 d4", 5.0),
        # The weights are the same, but what a does not use is lent.
        (Pools.SOFT, "c1 a1 a1 c2 a2 a2 d3 d3", 4.0),
    ],
)
def test_hard_and_soft_pools(pools: Pools, expected: str, end_s: float) -> None:
    application = Application(
        "pools",
        jobs_of({"a": 4, "c": 2, "d": 2}),
        (("c", "d"),),
        Classification.ANY_EDGE,
    )
    plan = Plan(pools, share=2 / 3, parallelism=3, batch_interval_s=1.0)
    oracle, reports, signals = simulate(application, plan, 3, [12])
    assert " ".join(f"{job}{start:g}" for job, _, start in starts_of(oracle)) == expected
    assert reports[0].end_s == end_s
    assert (reports[0].busy_independent_s, reports[0].busy_dependent_s) == (4.0, 4.0)
    assert signals[SIGNAL_INDEX["busy_dependent_s"]] == 4.0


def test_one_job_at_a_time_in_one_fifo_queue_is_sparks_default() -> None:
    application = Application("spark", jobs_of({"a": 2, "b": 1, "c": 2}))
    oracle, reports, _ = simulate(application, Plan(batch_interval_s=1.0), 2, [12, 12])
    order = [("a", 0), ("a", 0), ("b", 0), ("c", 0), ("c", 0)]
    assert [(job, batch) for job, batch, _ in starts_of(oracle)] == [
        *order,
        *[(job, 1) for job, _ in order],
    ]
    assert [start for _, _, start in starts_of(oracle)] == [1, 1, 2, 3, 3, 4, 4, 5, 6, 6]
    assert [report.queueing_s for report in reports] == [0.0, 2.0]  # cut at 2, started at 4


def test_a_stateful_job_waits_for_its_own_past_and_nobody_else_does() -> None:
    application = Application("state", jobs_of({"s": 1, "f": 1}, stateful="s"))
    plan = Plan(parallelism=8, batch_interval_s=1.0)
    oracle, reports, _ = simulate(application, plan, 8, [12, 12, 12], {"s": 3.0, "f": 1.5})
    starts = starts_of(oracle)
    assert [start for job, _, start in starts if job == "s"] == [1.0, 4.0, 7.0]
    assert [start for job, _, start in starts if job == "f"] == [1.0, 2.0, 3.0]
    assert [report.end_s for report in reports] == [4.0, 7.0, 10.0]


def test_an_idle_trigger_cuts_at_the_arrival_or_when_a_batch_ends() -> None:
    application = Application("idle", jobs_of({"a": 1}))
    plan = Plan(batch_interval_s=0.0, idle_batches=1)
    _, reports, _ = simulate(application, plan, 1, [1, 1, 1, 0, 0, 0, 1], 2.0)
    # Records arrive in the middle of ticks: at 0.5, 1.5, 2.5 and 6.5.
    assert [report.cut_s for report in reports] == [0.5, 2.5, 6.5]
    assert [report.records for report in reports] == [1, 2, 1]
    assert [report.mean_arrival_s for report in reports] == [0.5, 2.0, 6.5]


def test_an_idle_trigger_keeps_its_minimum_gap() -> None:
    application = Application("idle", jobs_of({"a": 1}))
    plan = Plan(batch_interval_s=1.25, idle_batches=1, parallelism=2)
    _, reports, _ = simulate(application, plan, 1, [1, 1, 1], 0.25)
    assert [report.cut_s for report in reports] == [1.25, 2.5]


def test_a_failed_job_cancels_those_that_wait_for_it() -> None:
    application = Application(
        "failure", jobs_of({"f": 5, "g": 1, "k": 1, "h": 1}), (("f", "g"), ("g", "k"))
    )
    good = constant_profile(application, 1.0)
    bad = constant_profile(application, 1.0, failure_probability=1.0 - 1e-9)
    profile = type(good)("mixed", {**good.costs, ("f", "m"): bad.costs["f", "m"]}, 1, 1)
    plan = Plan(parallelism=4, batch_interval_s=1.0)
    oracle, reports, signals = run_both((application, profile, 2), [12], 1.0, plan, 100.0)
    # Two tasks of f start at 1, try twice and fail at 3; its other three never start.
    assert starts_of(oracle) == [("f", 0, 1.0), ("f", 0, 1.0), ("h", 0, 3.0)]
    assert reports[0].failed_jobs == 3  # f, and g and k, which never ran
    assert reports[0].tasks == 5  # attempts: 2 x 2 of f, 1 of h
    assert reports[0].end_s == 4.0
    assert signals[SIGNAL_INDEX["records_failed"]] == 12
    assert signals[SIGNAL_INDEX["records_out"]] == 0


# Mistakes at the edge ---------------------------------------------------------------------------


def small_engine() -> ClusterEngine:
    application = Application("small", jobs_of({"a": 1}))
    engine = ClusterEngine(application, constant_profile(application, 1.0), 1, 2, report_rows=1)
    keys = np.zeros(2, dtype=np.uint64)
    engine.reset(keys, np.full((2, 8), 5), 1.0, Plan(batch_interval_s=1.0))
    return engine


@pytest.mark.parametrize("until_s", [-1.0, np.nan, np.inf])
def test_impossible_times_are_refused(until_s: float) -> None:
    rows = np.tile(Plan(batch_interval_s=1.0).to_row(), (2, 1))
    with pytest.raises(ValueError, match=r"until_s\[1\] is .*expected finite seconds"):
        small_engine().advance(rows, np.array([0.0, until_s]))


def test_wrong_shapes_are_refused() -> None:
    engine, row = small_engine(), Plan(batch_interval_s=1.0).to_row()
    with pytest.raises(ValueError, match="do not fit"):
        engine.advance(row, np.ones(2))
    with pytest.raises(ValueError, match="do not fit 2 environments"):
        engine.reset(np.zeros(1, dtype=np.uint64), np.ones((1, 8), dtype=np.int64), 1.0, Plan())
    with pytest.raises(ValueError, match="at least one tick"):
        engine.reset(np.zeros(2, dtype=np.uint64), np.ones((2, 0), dtype=np.int64), 1.0, Plan())
    one = np.zeros(1, dtype=np.int64)
    with pytest.raises(ValueError, match="reset them all together"):
        engine.reset(np.zeros(1, dtype=np.uint64), np.ones((1, 9), np.int64), 1.0, Plan(), one)


def test_reports_without_room_are_an_error() -> None:
    engine = small_engine()
    rows = np.tile(Plan(batch_interval_s=1.0).to_row(), (2, 1))
    with pytest.raises(RuntimeError, match="raise report_rows"):
        engine.advance(rows, np.full(2, 8.0))
