from __future__ import annotations

from dataclasses import replace

import numpy as np

from agents.api import ConstantRows, Episodes, Separately, run_episodes
from agents.heuristics.constant import ConstantAgent
from agents.heuristics.random import RandomAgent
from envs.cluster.config import StreamClusterConfig
from runtime.plan import Plan
from runtime.snapshot import REPORT_INDEX, SIGNAL_INDEX


def test_every_record_that_arrived_is_reported_once(
    world: StreamClusterConfig, episodes: Episodes
) -> None:
    plan = Plan(parallelism=4, batch_interval_s=0.5)
    rollout = run_episodes(world, ConstantRows(np.tile(plan.to_row(), (3, 1))), episodes)
    counts = world.arrivals.counts(episodes.keys, episodes.starts, world.n_ticks)
    assert rollout.unfinished.tolist() == [0, 0, 0]
    for k, reports in enumerate(rollout.reports):
        assert reports[:, REPORT_INDEX["records"]].sum() == counts[k].sum()
        assert len(np.unique(reports[:, REPORT_INDEX["batch"]])) == len(reports)


def test_what_cannot_drain_is_counted_as_unfinished(
    world: StreamClusterConfig, episodes: Episodes
) -> None:
    crowded = replace(world, arrivals=world.arrivals.scaled(20.0))
    plan = Plan(parallelism=1, batch_interval_s=0.5)
    agent = ConstantRows(np.tile(plan.to_row(), (3, 1)))
    rollout = run_episodes(crowded, agent, episodes, drain_s=0.0)
    counts = crowded.arrivals.counts(episodes.keys, episodes.starts, crowded.n_ticks)
    for k, reports in enumerate(rollout.reports):
        arrived = rollout.signals[-1, k, SIGNAL_INDEX["records_in"]]
        assert rollout.unfinished[k] > 0
        assert reports[:, REPORT_INDEX["records"]].sum() + rollout.unfinished[k] == arrived
        assert arrived <= counts[k].sum()


def test_single_agents_side_by_side_do_what_rows_do(
    world: StreamClusterConfig, episodes: Episodes
) -> None:
    plan = Plan(parallelism=4, batch_interval_s=0.5)
    rows = run_episodes(world, ConstantRows(np.tile(plan.to_row(), (3, 1))), episodes)
    each = run_episodes(world, Separately(lambda k: ConstantAgent("one", plan)), episodes)
    np.testing.assert_array_equal(rows.signals, each.signals)


def test_a_random_agent_repeats_itself_and_uses_all_levels(
    world: StreamClusterConfig, episodes: Episodes
) -> None:
    def run() -> np.ndarray:
        seeds = np.random.SeedSequence(5).spawn(3)
        agent = Separately(lambda k: RandomAgent(world.actions, seeds[k]))
        return run_episodes(world, agent, episodes).signals

    first = run()
    np.testing.assert_array_equal(first, run())
    assert set(np.unique(first[..., SIGNAL_INDEX["parallelism"]])) == {1.0, 4.0}
    assert set(np.unique(first[..., SIGNAL_INDEX["pools"]])) == {0.0, 1.0, 2.0}
