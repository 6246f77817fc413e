from __future__ import annotations

import numpy as np
import pytest
from omegaconf import OmegaConf

from agents.api import ConstantRows
from envs.cluster.config import CAPACITY_INTERVAL_S, StreamClusterConfig
from experiments.lineup import Entrant
from experiments.throughput import HIGHEST, LOWEST, throughput
from runtime.application import Application, Job, Stage
from runtime.plan import Plan
from simulators.arrivals import PoissonArrivals
from simulators.cluster.profile import Profile, StageCost

FIXED_S, PER_RECORD_S = 0.4, 0.005
ITERATIONS = 6
BRACKET = (HIGHEST - LOWEST) / 2**ITERATIONS


def one_task_world(max_open: int) -> StreamClusterConfig:
    """One job of one task on one slot, without any noise: a batch takes fixed + n * per record."""
    application = Application("one", (Job("job", (Stage("main", 2**30, max_tasks=1),)),))
    costs = {("job", "main"): StageCost(0.0, FIXED_S, PER_RECORD_S)}
    return StreamClusterConfig(
        application=application,
        profile=Profile("one", costs, 1, 1),
        slots=1,
        arrivals=PoissonArrivals(0.5, 1.0),
        horizon_s=2000.0,
        max_open=max_open,
    )


def sustainable_load(world: StreamClusterConfig, interval_s: float) -> float:
    """Bisect a constant plan and check the row's own arithmetic."""
    plan = Plan(parallelism=1, batch_interval_s=interval_s)
    entrant = Entrant("constant", 0, ConstantRows(np.tile(plan.to_row(), (3, 1))))
    config = OmegaConf.create({"size": {"throughput": {"iterations": ITERATIONS}}})
    row = throughput(config, world, [entrant], 3).iloc[0]
    assert row["resolution"] == pytest.approx(BRACKET)
    assert row["rate_per_s"] == pytest.approx(row["load"] * world.capacity_per_s)
    return float(row["load"])


@pytest.mark.parametrize("interval_s", [1.0, 2.0, 4.0])
def test_bisection_finds_the_closed_form(interval_s: float) -> None:
    world = one_task_world(max_open=2000)
    # Stable as long as fixed + rate * interval * per record <= interval.
    limit_per_s = (1.0 - FIXED_S / interval_s) / PER_RECORD_S
    # The bracket, and what a backlog needs to show itself within 1,500 s of Poisson arrivals.
    assert sustainable_load(world, interval_s) == pytest.approx(
        limit_per_s / world.capacity_per_s, abs=BRACKET + 0.03
    )


def test_records_that_wait_uncut_make_larger_batches_and_raise_the_limit() -> None:
    # With 4 open batches the next one takes all that waits, so its fixed cost is shared.
    few, many = (sustainable_load(one_task_world(max_open), 1.0) for max_open in (4, 2000))
    assert few > many + 2 * BRACKET


def test_the_unit_of_load_is_the_capacity_at_two_seconds() -> None:
    expected = (1.0 - FIXED_S / CAPACITY_INTERVAL_S) / PER_RECORD_S
    assert one_task_world(max_open=8).capacity_per_s == pytest.approx(expected)
