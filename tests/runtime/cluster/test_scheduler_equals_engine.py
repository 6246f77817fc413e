"""The real executor's scheduler, driven in virtual time, beside the compiled simulator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from runtime.application import Application, Job, Stage
from runtime.cluster.runs import Task
from runtime.cluster.scheduler import Scheduler
from runtime.cluster.source import Source
from runtime.plan import Plan, Policy, Pools
from runtime.snapshot import SIGNAL_INDEX
from simulators.cluster.engine import ClusterEngine
from simulators.cluster.profile import Profile, StageCost
from simulators.noise import uniform_reference

TICK_S = 0.1
PERIOD_S = 4.0
PERIODS = 6

APPLICATION = Application(
    "app",
    (
        Job("side", (Stage("main", 16), Stage("sum", 1000, max_tasks=1))),
        Job("wide", (Stage("main", 64),)),
        Job(
            "root",
            (
                Stage("left", 32),
                Stage("right", 64, selectivity=0.3, parents=()),
                Stage("join", 10, max_tasks=3, parents=("left", "right")),
            ),
        ),
        Job("middle", (Stage("main", 16),)),
        Job("last", (Stage("main", 64, max_tasks=1),), stateful=True),
    ),
    (("root", "middle"), ("middle", "last"), ("side", "last")),
)
STAGES = [(j, s) for j, job in enumerate(APPLICATION.jobs) for s in range(len(job.stages))]


def profile() -> Profile:
    rng = np.random.default_rng(0)
    costs = {}
    for j, s in STAGES:
        residual = rng.lognormal(0.0, 0.3, 16)
        costs[APPLICATION.jobs[j].name, APPLICATION.jobs[j].stages[s].name] = StageCost(
            wait_s=0.03,
            fixed_s=0.002,
            per_record_s=1e-4,
            residual=residual / residual.mean(),
            slowdown=np.linspace(1.0, 2.0, 9),
            failure_probability=0.03,
        )
    return Profile("app", costs, slots=8, cores=2)


def simulated_attempt(key: int, attempted: Any) -> Callable[[Task], Any]:
    """Return the engine's task times and failures, as a function of the task alone."""
    costs = list(profile().costs.values())

    def attempt(task: Task) -> Any:
        stage = STAGES.index((task.job, task.stage))
        cost = costs[stage]

        def took_s(draw: int) -> float:
            u = uniform_reference(key, stage, task.first_record, draw)
            compute_s = cost.fixed_s + cost.per_record_s * task.records
            residual = cost.residual[int(u * len(cost.residual))]
            return float(cost.wait_s + compute_s * residual * cost.slowdown[task.busy])

        def fails(draw: int) -> bool:
            u = uniform_reference(key, stage, task.first_record, draw)
            return u < cost.failure_probability

        if not fails(1):
            return attempted(took_s(0))
        return attempted(took_s(0) + took_s(2), attempts=2, failed=fails(3))

    return attempt


def random_plan(rng: np.random.Generator, version: int) -> Plan:
    return Plan(
        pools=Pools(int(rng.integers(3))),
        share=float(rng.uniform()),  # never twice the same plan, which would be no new version
        independent_policy=Policy(int(rng.integers(2))),
        dependent_policy=Policy(int(rng.integers(2))),
        parallelism=int(rng.integers(1, 6)),
        batch_interval_s=float(rng.choice([0.3, 0.7, 1.1, 2.0])),
        idle_batches=int(rng.choice([0, 0, 1, 2])),
        per_pool_parallelism=bool(rng.integers(2)),
        version=version,
    )


@pytest.mark.parametrize("seed", range(25))
def test_same_schedule_as_the_compiled_engine(seed: int, virtual_time: Any, attempted: Any) -> None:
    rng = np.random.default_rng(seed)
    slots, max_open, key = int(rng.integers(1, 9)), int(rng.integers(2, 9)), seed + 7
    counts = rng.poisson(rng.uniform(5, 60), size=round(PERIODS * PERIOD_S / TICK_S))
    plan = random_plan(rng, 0)
    engine = ClusterEngine(APPLICATION, profile(), slots, 1, max_open=max_open)
    engine.reset(np.array([key], dtype=np.uint64), counts[None], TICK_S, plan)
    scheduler = Scheduler(APPLICATION, Source(counts, TICK_S), slots, plan, max_open)
    real = virtual_time(scheduler, simulated_attempt(key, attempted))
    for period in range(1, PERIODS + 1):
        engine.advance(plan.to_row()[None], np.array([period * PERIOD_S]))
        simulated, snapshot = engine.snapshot(), real.run(period * PERIOD_S)
        np.testing.assert_allclose(snapshot.signals, simulated.signals, rtol=1e-9, atol=1e-7)
        assert len(snapshot.reports) == len(simulated.reports)
        for ours, theirs in zip(snapshot.reports, simulated.reports, strict=True):
            np.testing.assert_allclose(ours.to_row(), theirs.to_row(), rtol=1e-9, atol=1e-7)
        plan = random_plan(rng, period)
        real.apply(plan)
    assert snapshot.signals[SIGNAL_INDEX["records_in"]] == counts.sum()
