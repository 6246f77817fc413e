from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from agents.api import ConstantRows, Episodes, run_episodes
from agents.clairvoyant import ScheduleRows, hindsight_schedule
from agents.heuristics.constant import FAMILIES, count_share_plans, neighbours, plan_grid
from agents.tuning import evaluate_plans, plan_latencies_s
from envs.cluster.config import StreamClusterConfig
from runtime.cluster.actions import FieldActions
from runtime.plan import Plan, Policy, Pools
from runtime.snapshot import SIGNAL_INDEX


def little_mean_s(signals: np.ndarray) -> np.ndarray:
    area = signals[..., SIGNAL_INDEX["system_record_s"]].sum(axis=0)
    return np.asarray(area / signals[-1, :, SIGNAL_INDEX["records_in"]])


def test_grid_has_every_distinct_plan_once(world: StreamClusterConfig) -> None:
    assert isinstance(world.actions, FieldActions)
    plans = plan_grid(world.actions)
    single = 2 * 2 * 2 * 2  # policy, parallelism, interval, idle
    pooled = 2 * 2 * 2 * 2 * 2 * 2 * 2  # kind, share, two policies, parallelism, interval, idle
    assert len(plans) == single + pooled
    assert len({tuple(plan.to_row()) for plan in plans}) == len(plans)
    assert all(any(member(plan) for plan in plans) for member in FAMILIES.values())


def test_families_hold_what_their_names_say() -> None:
    spark = Plan(parallelism=1, batch_interval_s=3.0)
    assert FAMILIES["spark_default"](spark)
    assert not FAMILIES["spark_default"](Plan(parallelism=2))
    assert not FAMILIES["spark_default"](Plan(independent_policy=Policy.FAIR))
    assert not FAMILIES["single_best"](Plan(pools=Pools.SOFT))
    assert FAMILIES["idle_trigger"](Plan(idle_batches=1))
    assert not FAMILIES["static_best"](Plan(idle_batches=1))


def test_neighbours_differ_in_one_field_that_matters(world: StreamClusterConfig) -> None:
    assert isinstance(world.actions, FieldActions)
    soft = Plan(Pools.SOFT, 0.3, Policy.FIFO, Policy.FIFO, 4, 0.5)
    near = neighbours(soft, world.actions)
    # two other kinds of pools, one other level of each of the six other fields
    assert len(near) == len(set(near)) == 8
    for other in near:
        assert int((other.to_row() != soft.to_row()).sum()) == 1
    single = neighbours(replace(soft, pools=Pools.SINGLE), world.actions)
    assert {p.share for p in single} == {0.3}
    assert {p.dependent_policy for p in single} == {Policy.FIFO}


def test_count_share_follows_job_counts(world: StreamClusterConfig) -> None:
    assert isinstance(world.actions, FieldActions)
    for plan in count_share_plans(world.application, world.slots, world.actions):
        assert plan.pools is Pools.HARD
        assert plan.share == pytest.approx(2 / 3)
        assert plan.parallelism == 2  # the widest antichain: side with first, or side with last


def test_tuning_measures_what_a_rollout_measures(
    world: StreamClusterConfig, episodes: Episodes
) -> None:
    plans = [Plan(parallelism=p, batch_interval_s=t) for p in (1, 4) for t in (0.5, 2.0)]
    alone = plan_latencies_s(world, plans, episodes)
    for plan, row in zip(plans, alone, strict=True):
        agent = ConstantRows(np.tile(plan.to_row(), (3, 1)))
        rollout = run_episodes(world, agent, episodes)
        np.testing.assert_allclose(row, little_mean_s(rollout.signals))
    done: list[int] = []
    together = evaluate_plans(world, plans, episodes, done.append, processes=1)
    np.testing.assert_array_equal(together, alone)
    assert done[-1] == len(plans)


def test_search_with_the_true_future_is_no_worse_than_its_best_candidate(
    world: StreamClusterConfig, episodes: Episodes
) -> None:
    plans = [Plan(parallelism=4, batch_interval_s=t) for t in (0.5, 1.0, 2.0)]
    constant = plan_latencies_s(world, plans, episodes).min(axis=0)
    rows = [hindsight_schedule(world, episodes, k, plans, 10.0, 2) for k in range(3)]
    rollout = run_episodes(world, ScheduleRows(np.stack(rows, axis=1)), episodes)
    assert (little_mean_s(rollout.signals) <= constant + 1e-12).all()
