"""What every agent can do, and how agents are run in simulated clusters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from envs.cluster.clusters import Clusters
from envs.cluster.config import StreamClusterConfig
from runtime.plan import Plan
from runtime.snapshot import REPORT_COLUMNS, SIGNAL_INDEX, Snapshot

_SYSTEM = SIGNAL_INDEX["system_record_s"]
_IN = SIGNAL_INDEX["records_in"]
_FAILED = SIGNAL_INDEX["records_failed"]
_LEFT = [SIGNAL_INDEX["records_uncut"], SIGNAL_INDEX["records_pending"]]


class Agent(Protocol):
    """Decides for one cluster, simulated or real."""

    @property
    def name(self) -> str:
        """What the agent is called in tables."""

    def reset(self) -> None:
        """Forget the past; called before every episode."""

    def decide(self, snapshot: Snapshot) -> Plan:
        """Return the plan proposed for the next period."""


class BatchAgent(Protocol):
    """Decides for N simulated clusters at once."""

    def begin(self, clusters: Clusters) -> None:
        """Forget the past; called before the episodes start."""

    def propose(
        self, observation: NDArray[np.float32], signals: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return proposed plans, float64 [N, len(PLAN_COLUMNS)].

        Args:
            observation: float32 [N, size] of the environment's codec.
            signals: float64 [N, len(SIGNALS)].
        """


class Separately:
    """Runs one single-cluster agent per cluster."""

    def __init__(self, make_agent: Callable[[int], Agent]) -> None:
        """Keep the factory.

        Args:
            make_agent: Builds the agent of cluster k.
        """
        self._make_agent = make_agent
        self._agents: list[Agent] = []

    def begin(self, clusters: Clusters) -> None:
        """Build one agent per cluster."""
        self._clusters = clusters
        self._agents = [self._make_agent(k) for k in range(clusters.n)]
        for agent in self._agents:
            agent.reset()

    def propose(
        self, observation: NDArray[np.float32], signals: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Ask every agent; see `BatchAgent`."""
        snapshots = (self._clusters.engine.snapshot(k) for k in range(self._clusters.n))
        plans = [a.decide(s) for a, s in zip(self._agents, snapshots, strict=True)]
        return np.stack([plan.to_row() for plan in plans])


class ConstantRows:
    """Proposes the same plan in every period, another one in every cluster."""

    def __init__(self, rows: NDArray[np.float64]) -> None:
        """Keep plan rows, float64 [N, len(PLAN_COLUMNS)]."""
        self._rows = rows

    def begin(self, clusters: Clusters) -> None:
        """Nothing to forget."""

    def propose(
        self, observation: NDArray[np.float32], signals: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return the rows; see `BatchAgent`."""
        return self._rows


class Episodes(NamedTuple):
    """Which episodes to run; the same ones for all agents that are compared.

    Attributes:
        keys: uint64 [N].
        starts: int64 [N], first ticks in the arrivals.
    """

    keys: NDArray[np.uint64]
    starts: NDArray[np.int64]


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
