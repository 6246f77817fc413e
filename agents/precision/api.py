"""What every agent of staged precision can do, and how agents are run on simulated streams."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from agents.deciders import BatchDecider, ConstantRows, Decider, Episodes, Separately
from envs.precision.config import StagedPrecisionConfig
from envs.precision.servers import Servers
from runtime.precision.plan import PrecisionPlan
from runtime.precision.snapshot import REPORT_COLUMNS, REPORT_INDEX, PrecisionSnapshot
from simulators.precision.metrics import StreamSummary, arrival_times_s, summarise

__all__ = [
    "Accuracies",
    "ConstantRows",
    "Episodes",
    "PrecisionAgent",
    "PrecisionBatchAgent",
    "Separately",
    "Streams",
    "accuracies",
    "decides",
    "effective_accuracies",
    "observes",
    "run_streams",
]

_REQUESTS, _DROPPED = REPORT_INDEX["requests"], REPORT_INDEX["dropped"]
_CORRECT, _IN_TIME = REPORT_INDEX["correct"], REPORT_INDEX["correct_in_time"]

PrecisionAgent: TypeAlias = Decider[PrecisionSnapshot, PrecisionPlan]
"""Decides for one server, simulated or real."""
PrecisionBatchAgent: TypeAlias = BatchDecider[Servers]
"""Decides for N simulated servers at once."""


@dataclass(frozen=True, eq=False)
class Streams:
    """What became of N streams.

    Attributes:
        reports: Per episode float64 [batches, len(REPORT_COLUMNS)]; every request that arrived was
            served in one of them or dropped after it.
        plans: Per episode float64 [batches, 2 * S + 1], the plan that each batch was run under.
        summaries: The figures of each episode.
        causes: Per episode int64 [batches], why guards changed the proposals (bits of
            `PrecisionCause`).
    """

    reports: list[NDArray[np.float64]]
    plans: list[NDArray[np.float64]]
    summaries: list[StreamSummary]
    causes: list[NDArray[np.int64]]


def decides(agent: object) -> bool:
    """Return whether an agent works its plans out while requests wait, which takes time.

    Agents are taken to do so unless their attribute `decides` says otherwise: those that always
    give the same plan, and searches whose plans were made beforehand.
    """
    return bool(getattr(agent, "decides", True))


def observes(agent: object) -> bool:
    """Return whether an agent for many servers decides by the environment's observations.

    Agents are taken to do so unless their attribute `observes` says otherwise: those that look at
    the signals alone, or encode them themselves.
    """
    return bool(getattr(agent, "observes", True))


def _servers_for(
    config: StagedPrecisionConfig, agent: PrecisionBatchAgent, episodes: Episodes
) -> Servers:
    """Return servers on which only agents that decide take time for it."""
    if not decides(agent):
        config = replace(config, profile=config.profile.without_decisions())
    return Servers(config, len(episodes.keys), observe=observes(agent))


def run_streams(
    config: StagedPrecisionConfig, agent: PrecisionBatchAgent, episodes: Episodes
) -> Streams:
    """Run an agent until every request of every stream was served or dropped.

    Arrivals end at the horizon; what still waits then is served. The same episodes have the same
    arrivals, samples, conditions and residuals under every agent.

    Args:
        config: The simulated world.
        agent: Who decides.
        episodes: Which streams.
    """
    servers = _servers_for(config, agent, episodes)
    observation = servers.begin(episodes.keys, episodes.starts)
    agent.begin(servers)
    engine = servers.engine
    reports: list[NDArray[np.float64]] = []
    plans: list[NDArray[np.float64]] = []
    causes: list[NDArray[np.int64]] = []
    while not engine.finished.all():
        observation = servers.serve_rows(agent.propose(observation, engine.signals))
        reports.append(engine.reports.copy())
        plans.append(servers.plans.copy())
        causes.append(servers.causes.copy())
    every = np.array(reports).reshape(-1, servers.n, len(REPORT_COLUMNS))
    served = every[..., _REQUESTS] > 0
    rows = [every[served[:, k], k] for k in range(servers.n)]
    tick_s = config.workload.arrivals.tick_s
    arrivals_s = [arrival_times_s(counts, tick_s) for counts in servers.counts()]
    energy = config.profile.energy
    return Streams(
        reports=rows,
        plans=_split(plans, served),
        summaries=[summarise(r, a, energy) for r, a in zip(rows, arrivals_s, strict=True)],
        causes=_split(causes, served),
    )


def _split(steps: list[NDArray[Any]], served: NDArray[np.bool_]) -> list[NDArray[Any]]:
    """Return the rows of each server in the steps in which it served, from rows of all."""
    n = served.shape[1]
    if not steps:
        return [np.zeros((0,)) for _ in range(n)]
    every = np.stack(steps)
    return [every[served[:, k], k] for k in range(n)]


class Accuracies(NamedTuple):
    """What agents are judged by, per episode.

    Attributes:
        effective: float64 [N], share of requests answered correctly and in time; NaN where nothing
            arrived.
        served: float64 [N], share of the served requests answered correctly, in time or not; NaN
            where nothing was served.
    """

    effective: NDArray[np.float64]
    served: NDArray[np.float64]


def accuracies(
    config: StagedPrecisionConfig, agent: PrecisionBatchAgent, episodes: Episodes
) -> Accuracies:
    """Return the accuracies of an agent; the figures of `run_streams`, without keeping reports."""
    servers = _servers_for(config, agent, episodes)
    observation = servers.begin(episodes.keys, episodes.starts)
    agent.begin(servers)
    engine = servers.engine
    in_time, correct, served, dropped = np.zeros((4, servers.n))
    while not engine.finished.all():
        observation = servers.serve_rows(agent.propose(observation, engine.signals))
        in_time += engine.reports[:, _IN_TIME]
        correct += engine.reports[:, _CORRECT]
        served += engine.reports[:, _REQUESTS]
        dropped += engine.reports[:, _DROPPED]
    return Accuracies(_share(in_time, served + dropped), _share(correct, served))


def _share(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(whole > 0.0, part / np.maximum(whole, 1.0), np.nan)


def effective_accuracies(
    config: StagedPrecisionConfig, agent: PrecisionBatchAgent, episodes: Episodes
) -> NDArray[np.float64]:
    """Return the share of requests answered correctly and in time, per episode, float64 [N]."""
    return accuracies(config, agent, episodes).effective
