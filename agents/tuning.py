"""Exhaustive search for the best constant plans on training data."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from multiprocessing.pool import Pool

import numpy as np
from numpy.typing import NDArray

from agents.api import ConstantRows, Episodes, mean_latencies_s
from envs.cluster.config import StreamClusterConfig
from runtime.plan import Plan

_CLUSTERS_AT_ONCE = 256


def plan_latencies_s(
    config: StreamClusterConfig, plans: Sequence[Plan], episodes: Episodes
) -> NDArray[np.float64]:
    """Return the mean latency of each constant plan in each episode.

    Returns:
        float64 [plans, episodes], seconds; see `agents.api.mean_latencies_s`.
    """
    rows = np.stack([plan.to_row() for plan in plans])
    n = len(episodes.keys)
    everywhere = Episodes(np.tile(episodes.keys, len(plans)), np.tile(episodes.starts, len(plans)))
    constants = ConstantRows(np.repeat(rows, n, axis=0))
    return mean_latencies_s(config, constants, everywhere).reshape(len(plans), n)


def evaluate_plans(
    config: StreamClusterConfig,
    plans: Sequence[Plan],
    episodes: Episodes,
    on_progress: Callable[[int], None] = lambda done: None,
    processes: int | None = None,
) -> NDArray[np.float64]:
    """Evaluate many constant plans in parallel; arguments and result of `plan_latencies_s`.

    Args:
        config: The simulated world, with training arrivals.
        plans: Which plans.
        episodes: Which episodes, common to all plans.
        on_progress: Told the number of plans that are done.
        processes: Worker processes; None means one per core.
    """
    size = max(1, _CLUSTERS_AT_ONCE // len(episodes.keys))
    chunks = [range(i, min(i + size, len(plans))) for i in range(0, len(plans), size)]
    result = np.full((len(plans), len(episodes.keys)), np.nan)
    work = [(config, [plans[i] for i in chunk], episodes, chunk.start) for chunk in chunks]
    done = 0
    with worker_pool(min(processes or os.cpu_count() or 1, len(chunks))) as pool:
        for start, latencies in pool.imap_unordered(_evaluate_chunk, work):
            result[start : start + len(latencies)] = latencies
            done += len(latencies)
            on_progress(done)
    return result


def _evaluate_chunk(
    work: tuple[StreamClusterConfig, list[Plan], Episodes, int],
) -> tuple[int, NDArray[np.float64]]:
    """Evaluate some of the plans; return the number of the first one and the latencies."""
    config, plans, episodes, start = work
    return start, plan_latencies_s(config, plans, episodes)


def worker_pool(processes: int) -> Pool:
    """Return a pool of worker processes that end with the `with` block, finished or not.

    Ctrl-C is left to the parent: it leaves the block, which ends the workers at once.
    """
    context = multiprocessing.get_context("spawn")
    return context.Pool(processes, signal.signal, (signal.SIGINT, signal.SIG_IGN))
