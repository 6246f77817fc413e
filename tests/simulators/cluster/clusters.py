"""Random clusters and plans for property tests, and a run of engine and oracle side by side."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from runtime.application import Application, Classification, Job, Stage
from runtime.plan import Plan, Policy, Pools
from runtime.snapshot import Report
from simulators.cluster.engine import ClusterEngine
from simulators.cluster.profile import Profile, StageCost
from simulators.cluster.reference import ReferenceCluster

Cluster = tuple[Application, Profile, int]


@st.composite
def stages(draw: st.DrawFn) -> tuple[Stage, ...]:
    names = "xyz"[: draw(st.integers(1, 3))]
    result: list[Stage] = []
    for i, name in enumerate(names):
        parents = draw(
            st.one_of(st.none(), st.sets(st.sampled_from(names[:i])).map(tuple)) if i else st.none()
        )
        result.append(
            Stage(
                name,
                records_per_task=draw(st.integers(1, 40)),
                max_tasks=draw(st.sampled_from([1, 3, 50])),
                selectivity=draw(st.sampled_from([0.01, 0.5, 1.0, 2.0])),
                parents=parents,
            )
        )
    return tuple(result)


@st.composite
def costs(draw: st.DrawFn, slots: int, *, plain: bool) -> StageCost:
    """Draw costs; short lists of round numbers make ends at the same instant frequent."""
    seconds = st.sampled_from([0.0, 0.01, 0.1, 0.5])
    ragged = st.lists(st.floats(0.1, 3.0), min_size=1, max_size=4)
    residual = np.array(draw(st.one_of(st.just([1.0]), ragged)))
    steps = [0.0] if plain else draw(st.lists(st.sampled_from([0.0, 0.2, 0.4]), min_size=1))
    return StageCost(
        wait_s=draw(seconds),
        fixed_s=draw(st.sampled_from([0.001, 0.1, 0.25])),
        per_record_s=draw(st.sampled_from([0.0, 0.001])),
        residual=residual / residual.mean(),
        slowdown=np.cumsum([1.0, *steps]),
        failure_probability=0.0 if plain else draw(st.sampled_from([0.0, 0.0, 0.2, 0.6])),
    )


@st.composite
def clusters(draw: st.DrawFn, *, plain: bool = False, max_slots: int = 40) -> Cluster:
    """Draw a cluster; a plain one has neither failures nor slowdown."""
    names = "abcde"[: draw(st.integers(1, 5))]
    jobs = tuple(Job(name, draw(stages()), draw(st.booleans())) for name in names)
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    edges = tuple(sorted(draw(st.sets(st.sampled_from(pairs))))) if pairs else ()
    application = Application("random", jobs, edges, draw(st.sampled_from(list(Classification))))
    slots = draw(st.sampled_from([n for n in (1, 2, 3, 5, 6, 17, 40) if n <= max_slots]))
    table = {
        (job.name, stage.name): draw(costs(slots, plain=plain))
        for job in jobs
        for stage in job.stages
    }
    return application, Profile("random", table, slots, slots), slots


@st.composite
def tied_clusters(draw: st.DrawFn) -> Cluster:
    """Draw a cluster where many tasks end at the same instant and the order of ends matters."""
    names = "abcdef"[: draw(st.integers(2, 6))]
    jobs = tuple(
        Job(name, (Stage("m", records_per_task=1, max_tasks=draw(st.integers(1, 40))),))
        for name in names
    )
    cost = StageCost(0.0, 0.5, 0.0, np.array([0.5, 1.0, 1.5]))
    slots = draw(st.integers(3, 20))
    profile = Profile("tied", {(name, "m"): cost for name in names}, slots, slots)
    edges = (("a", "b"),) if draw(st.booleans()) else ()
    return Application("tied", jobs, edges, Classification.ANY_EDGE), profile, slots


plans = st.builds(
    Plan,
    pools=st.sampled_from(list(Pools)),
    share=st.sampled_from([0.0, 0.2, 0.5, 0.7, 1.0]),
    independent_policy=st.sampled_from(list(Policy)),
    dependent_policy=st.sampled_from(list(Policy)),
    parallelism=st.integers(1, 6),
    batch_interval_s=st.sampled_from([0.1, 0.5, 1.0, 2.5]),
    idle_batches=st.integers(0, 3),
    per_pool_parallelism=st.booleans(),
)


def constant_profile(
    application: Application, task_s: float | dict[str, float], **cost: float
) -> Profile:
    """Return a profile whose tasks all take the same time, or one time per job."""
    table = {
        (job.name, stage.name): StageCost(
            wait_s=0.0,
            fixed_s=task_s[job.name] if isinstance(task_s, dict) else task_s,
            per_record_s=0.0,
            **cost,
        )
        for job in application.jobs
        for stage in job.stages
    }
    return Profile("constant", table, 1, 1)


def run_both(
    cluster: Cluster, counts: list[int], tick_s: float, plan: Plan, until_s: float
) -> tuple[ReferenceCluster, list[Report], NDArray[np.float64]]:
    """Run oracle and engine for one period and demand the same from both.

    Returns:
        The oracle, and the reports and signals of the period.
    """
    application, profile, slots = cluster
    arrivals = np.array([counts], dtype=np.int64)
    engine = ClusterEngine(application, profile, slots)
    oracle = ReferenceCluster(application, profile, slots)
    engine.reset(np.array([7], dtype=np.uint64), arrivals, tick_s, plan)
    oracle.reset(7, arrivals[0], tick_s, plan)
    engine.advance(plan.to_row()[None], np.array([until_s]))
    seen = oracle.advance(plan, until_s)
    np.testing.assert_array_equal(engine.signals[0], seen.signals)
    rows = [report.to_row() for report in seen.reports]
    np.testing.assert_array_equal(engine.report_rows(0), np.array(rows).reshape(-1, 14))
    return oracle, list(seen.reports), seen.signals
