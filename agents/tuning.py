"""Exhaustive search for the best constant plans on training data."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed

import numpy as np
from numpy.typing import NDArray

from agents.api import Episodes
from envs.cluster.clusters import Clusters
from envs.cluster.config import StreamClusterConfig
from runtime.plan import Plan
from runtime.snapshot import SIGNAL_INDEX

_SYSTEM = SIGNAL_INDEX["system_record_s"]
_IN = SIGNAL_INDEX["records_in"]
_FAILED = SIGNAL_INDEX["records_failed"]
_CLUSTERS_AT_ONCE = 256


def mean_latencies_s(
    config: StreamClusterConfig, plans: Sequence[Plan], episodes: Episodes
) -> NDArray[np.float64]:
    """Return the mean latency of each constant plan in each episode.

    By Little's law: the integral of records in the system up to the horizon over the records that
    arrived, failed records at the latency cap; this is what the reward sums.

    Returns:
        float64 [plans, episodes], seconds.
    """
    n = len(episodes.keys)
    rows = np.stack([plan.to_row() for plan in plans])
    clusters = Clusters(config, len(plans) * n)
    clusters.begin(np.tile(episodes.keys, len(plans)), np.tile(episodes.starts, len(plans)))
    proposed = np.repeat(rows, n, axis=0)
    area = np.zeros(clusters.n)
    over = False
    while not over:
        _, _, over = clusters.step_rows(proposed)
        area += clusters.engine.signals[:, _SYSTEM]
    signals = clusters.engine.signals
    area += signals[:, _FAILED] * config.reward.latency_cap_s
    return (area / np.maximum(signals[:, _IN], 1.0)).reshape(len(plans), n)


def evaluate_plans(
    config: StreamClusterConfig,
    plans: Sequence[Plan],
    episodes: Episodes,
    on_progress: Callable[[int], None] = lambda done: None,
    processes: int | None = None,
) -> NDArray[np.float64]:
    """Evaluate many constant plans in parallel; arguments and result of `mean_latencies_s`.

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
    context = multiprocessing.get_context("spawn")
    workers = min(processes or os.cpu_count() or 1, len(chunks))
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        jobs = {
            pool.submit(mean_latencies_s, config, [plans[i] for i in chunk], episodes): chunk
            for chunk in chunks
        }
        done = 0
        try:
            for job in as_completed(jobs):
                chunk = jobs[job]
                result[chunk.start : chunk.stop] = job.result()
                done += len(chunk)
                on_progress(done)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return result
