"""The compiled engine and the plain-Python oracle give the same bits."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.application import Application, Classification, Job, Stage
from runtime.plan import Plan, Policy, Pools
from simulators.cluster.engine import ClusterEngine
from simulators.cluster.profile import Profile, StageCost
from simulators.cluster.reference import ReferenceCluster


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
def clusters(draw: st.DrawFn) -> tuple[Application, Profile, int]:
    names = "abcde"[: draw(st.integers(1, 5))]
    jobs = tuple(Job(name, draw(stages()), draw(st.booleans())) for name in names)
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    edges = tuple(sorted(draw(st.sets(st.sampled_from(pairs))))) if pairs else ()
    application = Application("random", jobs, edges, draw(st.sampled_from(list(Classification))))
    seconds = st.sampled_from([0.0, 0.01, 0.1])
    slots = draw(st.integers(1, 6))
    costs = {}
    for job in jobs:
        for stage in job.stages:
            residual = np.array(draw(st.lists(st.floats(0.1, 3.0), min_size=1, max_size=4)))
            costs[job.name, stage.name] = StageCost(
                wait_s=draw(seconds),
                fixed_s=0.001 + draw(seconds),
                per_record_s=draw(st.sampled_from([0.0, 0.001])),
                residual=residual / residual.mean(),
                slowdown=np.cumsum([1.0, *draw(st.lists(st.floats(0, 0.4), min_size=1))]),
                failure_probability=draw(st.sampled_from([0.0, 0.0, 0.2, 0.6])),
            )
    return application, Profile("random", costs, slots, slots), slots


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


@settings(max_examples=150, deadline=None)
@given(
    cluster=clusters(),
    plan_rows=st.lists(st.lists(plans, min_size=2, max_size=2), min_size=2, max_size=10),
    rates=st.lists(st.integers(0, 60), min_size=1, max_size=12),
    max_open=st.integers(1, 4),
    seed=st.integers(0, 2**64 - 1),
)
def test_engine_equals_reference(cluster, plan_rows, rates, max_open, seed) -> None:
    application, profile, slots = cluster
    period_s, tick_s = 1.5, 0.5
    n_ticks = int(len(plan_rows) * period_s / tick_s) + 1
    counts = np.array([[rates[(e + k) % len(rates)] for k in range(n_ticks)] for e in range(2)])
    keys = np.array([seed, seed ^ 1], dtype=np.uint64)
    engine = ClusterEngine(application, profile, slots, 2, max_open=max_open, report_rows=2000)
    engine.reset(keys, counts, tick_s, plan_rows[0][0])
    oracles = [ReferenceCluster(application, profile, slots, max_open=max_open) for _ in range(2)]
    for e, oracle in enumerate(oracles):
        oracle.reset(int(keys[e]), counts[e], tick_s, plan_rows[0][0])
    for k, pair in enumerate(plan_rows):
        until_s = (k + 1) * period_s
        engine.advance(np.stack([plan.to_row() for plan in pair]), np.full(2, until_s))
        for e, oracle in enumerate(oracles):
            expected = oracle.advance(pair[e], until_s)
            np.testing.assert_array_equal(engine.signals[e], expected.signals)
            reports = np.array([report.to_row() for report in expected.reports])
            np.testing.assert_array_equal(engine.report_rows(e), reports.reshape(-1, 14))
