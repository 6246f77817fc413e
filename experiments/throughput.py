"""Throughput by bisection: the highest steady rate at which an agent's backlog does not grow."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
from omegaconf import DictConfig

from agents.api import Episodes, run_episodes
from envs.cluster.config import StreamClusterConfig
from experiments.lineup import Entrant
from experiments.training import Report, silent
from runtime.snapshot import SIGNAL_INDEX
from simulators.arrivals import PoissonArrivals
from simulators.cluster.metrics import is_stable

LOWEST, HIGHEST = 0.1, 3.0  # loads between which the limit is searched


def keeps_up(world: StreamClusterConfig, entrant: Entrant, load: float, n: int) -> bool:
    """Return whether an agent's backlog stays bounded in most of n episodes of steady arrivals."""
    arrivals = PoissonArrivals(world.arrivals.tick_s, load * world.capacity_per_s)
    steady = replace(world, arrivals=arrivals, starts=(0, 0))
    episodes = Episodes(np.arange(n, dtype=np.uint64), np.zeros(n, dtype=np.int64))
    rollout = run_episodes(steady, entrant.agent, episodes, drain_s=0.0)
    warm = rollout.signals[len(rollout.signals) // 4 :]
    times = warm[:, 0, SIGNAL_INDEX["time_s"]]
    arrived = warm[:, :, SIGNAL_INDEX["records_in"]]
    left = warm[:, :, SIGNAL_INDEX["records_out"]] + warm[:, :, SIGNAL_INDEX["records_failed"]]
    stable = [is_stable(times, arrived[:, k], left[:, k]) for k in range(n)]
    return 2 * sum(stable) > n


def throughput(
    config: DictConfig,
    world: StreamClusterConfig,
    entrants: list[Entrant],
    n: int,
    report: Report = silent,
) -> pd.DataFrame:
    """Bisect the sustainable load of several agents.

    Args:
        config: With `size.throughput.iterations`.
        world: The simulated world; its arrivals are replaced by steady Poisson ones.
        entrants: Agents made for n clusters.
        n: Episodes per step of the bisection.
        report: Told about progress.

    Returns:
        A row per agent: agent, train_seed, load (of the capacity at the stated interval), rate in
        records per second, and half the last bracket.
    """
    rows = []
    iterations = int(config.size.throughput.iterations)
    for k, entrant in enumerate(entrants):
        report("throughput", k, len(entrants))
        low, high = LOWEST, HIGHEST
        for _ in range(iterations):
            middle = 0.5 * (low + high)
            if keeps_up(world, entrant, middle, n):
                low = middle
            else:
                high = middle
        rows.append(
            {
                "agent": entrant.name,
                "train_seed": entrant.train_seed,
                "load": low,
                "rate_per_s": low * world.capacity_per_s,
                "resolution": high - low,
            }
        )
    report("throughput", len(entrants), len(entrants))
    return pd.DataFrame(rows)
