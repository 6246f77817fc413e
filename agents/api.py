"""What every agent can do, and how agents are run in simulated clusters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from agents.deciders import BatchDecider, ConstantRows, Decider, Episodes, Separately
from envs.cluster.clusters import Clusters
from envs.cluster.config import StreamClusterConfig
from runtime.plan import Plan
from runtime.snapshot import REPORT_COLUMNS, SIGNAL_INDEX, Snapshot

_SYSTEM = SIGNAL_INDEX["system_record_s"]
_IN = SIGNAL_INDEX["records_in"]
_FAILED = SIGNAL_INDEX["records_failed"]
_LEFT = [SIGNAL_INDEX["records_uncut"], SIGNAL_INDEX["records_pending"]]

__all__ = [
    "Agent",
    "BatchAgent",
    "ConstantRows",
    "Episodes",
    "Rollout",
    "Separately",
    "mean_latencies_s",
    "run_episodes",
]

Agent: TypeAlias = Decider[Snapshot, Plan]
"""Decides for one cluster, simulated or real."""
BatchAgent: TypeAlias = BatchDecider[Clusters]
"""Decides for N simulated clusters at once."""


@dataclass(frozen=True, eq=False)
class Rollout:
    """What happened in N episodes.

    Attributes:
        reports: Per episode float64 [batches, len(REPORT_COLUMNS)], ordered by end; every record
            that arrived before the horizon is in one of them unless `unfinished` counts it.
        signals: float64 [steps, N, len(SIGNALS)], after each decision's period.
        unfinished: int64 [N], records that had not left when draining was given up.
    """

    reports: list[NDArray[np.float64]]
    signals: NDArray[np.float64]
    unfinished: NDArray[np.int64]


def run_episodes(
    config: StreamClusterConfig, agent: BatchAgent, episodes: Episodes, drain_s: float = 600.0
) -> Rollout:
    """Run an agent for whole episodes and let the clusters drain.

    After the horizon nothing arrives any more; the last plans stay until the clusters are empty,
    so that late records are counted with their real latency.

    Args:
        config: The simulated world.
        agent: Who decides.
        episodes: Which arrivals.
        drain_s: Simulated seconds after which draining is given up.
    """
    clusters = Clusters(config, len(episodes.keys))
    observation = clusters.begin(episodes.keys, episodes.starts)
    agent.begin(clusters)
    engine = clusters.engine
    reports: list[list[NDArray[np.float64]]] = [[] for _ in range(clusters.n)]
    signals: list[NDArray[np.float64]] = []
    over = False
    while not over:
        observation, _, over = clusters.step_rows(agent.propose(observation, engine.signals))
        signals.append(engine.signals.copy())
        _collect(clusters, reports)
    time_s = config.steps * config.period_s
    while engine.signals[:, _LEFT].any() and time_s < config.horizon_s + drain_s:
        time_s += config.period_s
        engine.advance(clusters.plans, np.full(clusters.n, time_s))
        _collect(clusters, reports)
    empty = np.zeros((0, len(REPORT_COLUMNS)))
    return Rollout(
        reports=[np.concatenate([empty, *rows]) for rows in reports],
        signals=np.stack(signals),
        unfinished=engine.signals[:, _LEFT].sum(axis=1).astype(np.int64),
    )


def mean_latencies_s(
    config: StreamClusterConfig, agent: BatchAgent, episodes: Episodes
) -> NDArray[np.float64]:
    """Return an agent's mean latency in each episode, float64 [N], seconds.

    By Little's law: the integral of records in the system up to the horizon over the records that
    arrived, failed records at the latency cap; this is what the reward sums.
    """
    clusters = Clusters(config, len(episodes.keys))
    observation = clusters.begin(episodes.keys, episodes.starts)
    agent.begin(clusters)
    signals = clusters.engine.signals
    area = np.zeros(clusters.n)
    over = False
    while not over:
        observation, _, over = clusters.step_rows(agent.propose(observation, signals))
        area += signals[:, _SYSTEM]
    area += signals[:, _FAILED] * config.reward.latency_cap_s
    result: NDArray[np.float64] = area / np.maximum(signals[:, _IN], 1.0)
    return result


def _collect(clusters: Clusters, reports: list[list[NDArray[np.float64]]]) -> None:
    """Keep the reports of the last period."""
    for k, rows in enumerate(reports):
        rows.append(clusters.engine.report_rows(k))
