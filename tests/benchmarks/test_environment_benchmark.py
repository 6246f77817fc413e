from __future__ import annotations

import numpy as np
import pytest

from benchmarks.engine import HARD
from benchmarks.environment import (
    _ACTION,
    budget_world,
    decision_snapshots,
    measure_parts,
    measure_single,
)
from envs.cluster.env import StreamClusterEnv
from runtime.plan import Plan
from runtime.snapshot import SIGNAL_INDEX


def test_the_environment_runs_the_budgets_workload() -> None:
    env = StreamClusterEnv(budget_world())
    env.reset(seed=0)
    tasks = []
    for _ in range(100):
        env.step(_ACTION)
        tasks.append(env.clusters.engine.signals[0, SIGNAL_INDEX["tasks_ended"]])
    assert 55 < np.mean(tasks[10:]) < 70
    assert Plan.from_row(env.clusters.plans[0]) == HARD
    assert env.clusters.engine.signals[0, SIGNAL_INDEX["batches_pending"]] <= 4


def test_parts_of_a_step_take_no_longer_than_the_step() -> None:
    step = measure_single(steps=50, repetitions=5)[0]
    parts = measure_parts(calls=50, repetitions=5)
    assert len(parts) == 5
    assert step.value > 0
    assert 0.0 < sum(row.value for row in parts) < 3 * 1e6 / step.value  # the machine is shared


def test_snapshots_of_decisions_differ() -> None:
    policy, snapshots = decision_snapshots(count=5)
    assert len({snapshot["time_s"] for snapshot in snapshots}) == 5
    assert isinstance(policy.decide(snapshots[0]), Plan)
    assert pytest.approx(10.0) == snapshots[-1]["time_s"]
